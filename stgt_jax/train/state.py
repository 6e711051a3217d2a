"""The state of training: what it holds, its layout on the mesh, and how it is initialised.

Parameters are in two trees: trainable ones, which have gradients and optimizer state, and frozen ones. The shapes and
layout of the state are known before any array exists, and arrays are initialised on the devices that hold them.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from stgt_jax.config import ModelConfig, TrainConfig
from stgt_jax.mesh import Workload, check_axes, choose_mesh, make_mesh
from stgt_jax.models.stgt import STGT, init_params, param_shapes
from stgt_jax.sharding import param_shardings
from stgt_jax.train.optimizer import make_optimizer


@flax.struct.dataclass
class TrainState:
    """All that the next step depends on, except the batch and the seed."""

    step: jax.Array  # [] int32, the number of steps done
    params: Any  # trainable parameters
    frozen: Any  # parameters that never change; matrices in the dtype of the computation
    opt_state: Any


def split_params(params: Any, config: ModelConfig) -> tuple[Any, Any]:
    """Splits a parameter tree into (trainable, frozen); `merge_params` is the inverse."""
    trainable: dict[tuple[str, ...], Any] = {}
    frozen: dict[tuple[str, ...], Any] = {}
    for path, leaf in flatten_dict(params).items():
        (frozen if _is_frozen(path, config) else trainable)[path] = leaf
    return unflatten_dict(trainable), unflatten_dict(frozen)


def merge_params(trainable: Any, frozen: Any) -> Any:
    """Joins the two trees of `split_params` to the model's parameter tree."""
    return unflatten_dict(flatten_dict(trainable) | flatten_dict(frozen))


def _is_frozen(path: tuple[str, ...], config: ModelConfig) -> bool:
    if path == ("graph", "pos_2d_embed"):
        return True
    return config.vision.freeze and path[0] == "vision" and path[1] != "open_blocks"


def state_shapes(model: STGT, config: TrainConfig) -> TrainState:
    """Shape and dtype of the whole state."""
    return jax.eval_shape(lambda params: _new_state(model, config, params), param_shapes(model))


def abstract_params(model: STGT, mesh: Mesh) -> Any:
    """Shape, dtype and layout on `mesh` of every parameter: a tree of `jax.ShapeDtypeStruct`."""
    return _with_shardings(param_shapes(model), mesh)


def abstract_state(model: STGT, config: TrainConfig, mesh: Mesh) -> TrainState:
    """Shape, dtype and layout on `mesh` of the whole state: a tree of `jax.ShapeDtypeStruct`."""
    return _with_shardings(state_shapes(model, config), mesh)


def init_state(model: STGT, config: TrainConfig, mesh: Mesh, params: Any = None) -> TrainState:
    """The state at step 0, laid out on `mesh`.

    Args:
      model: the model.
      config: the training's; `config.seed` seeds random parameters.
      mesh: the mesh to train on.
      params: all parameters to start from, which are copied; by default random ones.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, config, mesh))
    if params is None:
        rng = jax.random.key(config.seed)
        return jax.jit(lambda: _new_state(model, config, init_params(model, rng)), out_shardings=shardings)()
    params = jax.device_put(params, param_shardings(params, mesh))
    # Copied, because the train step reuses the memory of the state it is given.
    copy_and_create = jax.jit(lambda p: _new_state(model, config, jax.tree.map(jnp.copy, p)), out_shardings=shardings)
    return copy_and_create(params)


def mesh_for(
    model: STGT, config: TrainConfig, devices: Sequence[jax.Device] | None = None, memory: float | None = None
) -> Mesh:
    """The mesh to train on, with the axes of `config.mesh`; see `choose_mesh` and `make_mesh`."""
    check_axes(config.mesh, len(jax.devices() if devices is None else devices))  # before the model is traced
    return make_mesh(choose_mesh(config.mesh, workload(model, config), devices, memory), devices)


def workload(model: STGT, config: TrainConfig) -> Workload:
    """What a training holds and computes, for `choose_mesh`."""
    state = state_shapes(model, config)
    return Workload(
        params=param_shapes(model),
        held=(state, state.params),  # gradients have the shapes of the parameters that train
        clips=config.batch_size // config.accumulation_steps,
        num_frames=model.config.num_frames,
    )


def _new_state(model: STGT, config: TrainConfig, params: Any) -> TrainState:
    trainable, frozen = split_params(params, model.config)
    frozen = jax.tree_util.tree_map_with_path(functools.partial(_as_computed_with, model.config.dtype), frozen)
    opt_state = make_optimizer(config.optimizer, config.num_steps).init(trainable)
    return TrainState(step=jnp.zeros((), jnp.int32), params=trainable, frozen=frozen, opt_state=opt_state)


def _as_computed_with(dtype: str, path: tuple, leaf: jax.Array) -> jax.Array:
    """Casts a frozen matrix to the dtype of the computation: once instead of in every step, and with less memory."""
    return leaf.astype(dtype) if path[-1].key == "kernel" else leaf


def _with_shardings(tree: Any, mesh: Mesh) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        param_shardings(tree, mesh),
    )
