"""The weights that training starts from: random ones, those of an earlier stage, or those of a vision encoder."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from stgt_jax.config import ModelConfig, WeightsConfig
from stgt_jax.errors import STGTError
from stgt_jax.models.stgt import STGT
from stgt_jax.run_folder import check_initial_weights, read_run
from stgt_jax.sharding import param_shardings
from stgt_jax.train.checkpoint import PathLike, load_params, load_saved_params
from stgt_jax.train.state import init_params, param_shapes


def check_weights(weights: WeightsConfig, model: ModelConfig, *, needs_initial: bool) -> None:
    """Checks that a new run is given the weights that it cannot do without.

    Raises:
      STGTError: a second stage without the first one's weights, or a frozen vision encoder with random ones.
    """
    if needs_initial and not weights.initial:
        raise STGTError(
            "this recipe starts from the weights of an earlier stage: give its folder with --weights.initial DIR"
        )
    if model.vision.freeze and not (weights.vision or weights.initial):
        raise STGTError(
            "vision.freeze=true would keep an encoder of random weights: give a run or checkpoint with a trained one,"
            " --weights.vision DIR, or train the encoder with --vision.freeze false"
        )


def initial_params(weights: WeightsConfig, model: ModelConfig, seed: int, mesh: Mesh) -> Any:
    """Returns the parameter tree to start from, float32, laid out on `mesh`.

    Args:
      weights: where parameters come from; what neither of its folders gives is random.
      model: the model to train.
      seed: of the random parameters, which are the ones that `init_state` would draw.
      mesh: of `make_mesh`.

    Raises:
      STGTError: a folder without a checkpoint, or one of another model; names the first parameter that differs.
    """
    if weights.initial:
        params = load_params(weights.initial, model, mesh)
    else:
        params = _random_params(STGT(model), seed, mesh, without_vision=bool(weights.vision))
    return {**params, "vision": _load_vision(weights.vision, model, mesh)} if weights.vision else params


def _random_params(model: STGT, seed: int, mesh: Mesh, *, without_vision: bool) -> Any:
    def draw() -> Any:
        params = init_params(model, jax.random.key(seed))
        return {name: tree for name, tree in params.items() if not (without_vision and name == "vision")}

    return jax.jit(draw, out_shardings=param_shardings(jax.eval_shape(draw), mesh))()


def _load_vision(path: PathLike, model: ModelConfig, mesh: Mesh) -> Any:
    """Returns the vision encoder's parameters from a checkpoint whose other parts may be those of another model."""
    check_initial_weights(read_run(path), model, part="vision")
    saved = load_saved_params(path, mesh)["vision"]
    wanted = {"vision": param_shapes(STGT(model))["vision"]}

    def convert(tree: Any) -> Any:
        return {"vision": jax.tree.map(lambda x: x.astype(jnp.float32), _restack(tree, model.vision.open_blocks))}

    _check_shapes(path, jax.eval_shape(convert, saved), wanted)
    return jax.jit(convert, out_shardings=param_shardings(wanted, mesh))(saved)["vision"]


def _restack(vision: Mapping[str, Any], open_blocks: int) -> dict[str, Any]:
    """Returns an encoder's parameters with its last `open_blocks` blocks in a stack of their own."""
    parts = dict(vision)
    blocks = parts.pop("blocks")
    if "open_blocks" in parts:
        blocks = jax.tree.map(lambda *two: jnp.concatenate(two), blocks, parts.pop("open_blocks"))
    if not open_blocks:
        return {**parts, "blocks": blocks}
    first = jax.tree.map(lambda x: x[:-open_blocks], blocks)
    return {**parts, "blocks": first, "open_blocks": jax.tree.map(lambda x: x[-open_blocks:], blocks)}


def _check_shapes(path: PathLike, saved: Any, wanted: Any) -> None:
    there, here = flatten_dict(saved, sep="/"), flatten_dict(wanted, sep="/")
    for name, leaf in here.items():
        if name not in there or there[name].shape != leaf.shape:
            found = f"shape {there[name].shape}" if name in there else "missing"
            raise STGTError(
                f"{path}: {name} is {found} there and of shape {leaf.shape} in this model; give the vision options of"
                " that encoder, which are in its config.json"
            )
