"""What training carries from step to step, and how it is first made.

Parameters live in two trees: the trainable ones, which alone get a gradient and optimizer state, and the frozen ones.
The state is shaped without computing anything, given its layout on the mesh, and only then initialised, in place.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from stgt_jax.config import ModelConfig, TrainConfig
from stgt_jax.models.stgt import STGT
from stgt_jax.sharding import param_shardings
from stgt_jax.train.optimizer import make_optimizer


@flax.struct.dataclass
class TrainState:
    """Everything the next step depends on, but for the batch and the seed."""

    step: jax.Array  # [] int32, the number of steps done
    params: Any  # trainable parameters
    frozen: Any  # parameters that never change; matrices in the dtype of the computation
    opt_state: Any


def split_params(params: Any, config: ModelConfig) -> tuple[Any, Any]:
    """Parts a parameter tree into (trainable, frozen) trees; `merge_params` puts them together again."""
    trainable: dict[tuple[str, ...], Any] = {}
    frozen: dict[tuple[str, ...], Any] = {}
    for path, leaf in flatten_dict(params).items():
        (frozen if _is_frozen(path, config) else trainable)[path] = leaf
    return unflatten_dict(trainable), unflatten_dict(frozen)


def merge_params(trainable: Any, frozen: Any) -> Any:
    """The whole parameter tree of a model, from the trees of `split_params`."""
    return unflatten_dict(flatten_dict(trainable) | flatten_dict(frozen))


def _is_frozen(path: tuple[str, ...], config: ModelConfig) -> bool:
    if path == ("graph", "pos_2d_embed"):
        return True
    return config.vision.freeze and path[0] == "vision" and path[1] != "open_blocks"


def init_params(model: STGT, rng: jax.Array) -> Any:
    """Random parameters of an `STGT` model. Run it under jit or `jax.eval_shape`: neither computes the forward pass."""
    vision, frames, text = model.config.vision, model.config.num_frames, model.config.qformer.max_text_length
    video = jnp.zeros((1, frames, vision.image_size, vision.image_size, 3), jnp.uint8)  # [B, T, H, W, 3]
    input_ids = jnp.zeros((1, text), jnp.int32)  # [B, S]
    return model.init(rng, video, input_ids, jnp.ones_like(input_ids))["params"]


@functools.cache
def param_shapes(model: STGT) -> Any:
    """Shape and dtype of every parameter; kept, as a run asks for them often and tracing the model takes seconds."""
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def state_shapes(model: STGT, config: TrainConfig) -> TrainState:
    """Shape and dtype of the whole state."""
    return jax.eval_shape(lambda params: _new_state(model, config, params), param_shapes(model))


def abstract_params(model: STGT, mesh: Mesh) -> Any:
    """Shape, dtype and layout on `mesh` of every parameter, as `jax.ShapeDtypeStruct`s."""
    return _with_shardings(param_shapes(model), mesh)


def abstract_state(model: STGT, config: TrainConfig, mesh: Mesh) -> TrainState:
    """Shape, dtype and layout on `mesh` of the whole state, as `jax.ShapeDtypeStruct`s."""
    return _with_shardings(state_shapes(model, config), mesh)


def init_state(model: STGT, config: TrainConfig, mesh: Mesh, params: Any = None) -> TrainState:
    """The state at step 0, laid out on `mesh`.

    Args:
      model: an `STGT`.
      config: of the training; `config.seed` makes the random parameters.
      mesh: of `make_mesh`.
      params: the whole parameter tree to start from, which is copied; by default random parameters.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, config, mesh))
    if params is None:
        rng = jax.random.key(config.seed)
        return jax.jit(lambda: _new_state(model, config, init_params(model, rng)), out_shardings=shardings)()
    params = jax.device_put(params, param_shardings(params, mesh))
    # Copied, since the train step reuses the memory of the state given to it.
    copy_and_create = jax.jit(lambda p: _new_state(model, config, jax.tree.map(jnp.copy, p)), out_shardings=shardings)
    return copy_and_create(params)


def _new_state(model: STGT, config: TrainConfig, params: Any) -> TrainState:
    trainable, frozen = split_params(params, model.config)
    frozen = jax.tree_util.tree_map_with_path(functools.partial(_as_computed_with, model.config.dtype), frozen)
    opt_state = make_optimizer(config.optimizer, config.num_steps).init(trainable)
    return TrainState(step=jnp.zeros((), jnp.int32), params=trainable, frozen=frozen, opt_state=opt_state)


def _as_computed_with(dtype: str, path: tuple, leaf: jax.Array) -> jax.Array:
    """A frozen matrix as the products take it: rounded once, not in every step, and half as large in bfloat16."""
    return leaf.astype(dtype) if path[-1].key == "kernel" else leaf


def _with_shardings(tree: Any, mesh: Mesh) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        param_shardings(tree, mesh),
    )
