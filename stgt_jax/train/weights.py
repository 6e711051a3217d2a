"""The weights that training starts from: random ones, those of an earlier stage, or an encoder's or a Q-Former's."""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from stgt_jax.config import ModelConfig, WeightsConfig
from stgt_jax.convert.assemble import Assembly, assemble
from stgt_jax.convert.options import Conversion
from stgt_jax.convert.source import open_source
from stgt_jax.convert.tensor_files import is_weights
from stgt_jax.errors import STGTError
from stgt_jax.models.stgt import STGT, init_params, param_shapes
from stgt_jax.run_folder import check_initial_weights, folder_path, read_run
from stgt_jax.sharding import param_shardings
from stgt_jax.train.checkpoint import PathLike, is_own, load_params, load_saved_params

# Records in the folder of a run and of a converted model, and their key for the files of other projects.
ORIGINS_NAME, CONVERSION_NAME, OTHERS = "weights.json", "conversion.json", "weights_of_others"
HEAD = "answer_head"  # the parameters of the head for questions
# What of the model's top level each field of WeightsConfig replaces.
PARTS = {
    "vision": ("vision",),
    "qformer": ("ln_vision", "qformer", "vision_proj", "text_proj", "itm_head", "temperature"),
}


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


def initial_params(weights: WeightsConfig, model: ModelConfig, seed: int, mesh: Mesh) -> tuple[Any, dict[str, Any]]:
    """Returns the parameter tree to start from, float32, laid out on `mesh`, and where each part came from.

    Args:
      weights: where parameters come from; what none of them gives is random.
      model: the model to train.
      seed: of the random parameters, which are the ones that `init_state` would draw.
      mesh: of `make_mesh`.

    Returns:
      The parameters, and for each part of the model its source: a path or "random", or for files of other projects
      the report of `stgt_jax.convert`.

    Raises:
      STGTError: a folder without a checkpoint, or one of another model; names the first parameter that differs.
    """
    given = {part: path for part, path in (("vision", weights.vision), ("qformer", weights.qformer)) if path}
    replaced = {name for part in given for name in PARTS[part]}
    origins: dict[str, Any] = dict.fromkeys(param_shapes(STGT(model)), weights.initial or "random")
    if weights.initial:
        params = _load_all_but_head(weights.initial, model, mesh)
        if HEAD in origins:
            params |= _random_params(STGT(model), seed, mesh, without=origins.keys() - {HEAD})
            origins[HEAD] = "random"
    else:
        params = _random_params(STGT(model), seed, mesh, without=replaced)
    for part, path in given.items():
        if is_own(path) or not is_weights(path):
            params = {**params, **_load_part(part, path, model, mesh)}
            origins |= dict.fromkeys(PARTS[part], path)
        else:
            assembly = assemble_part(part, path, model, weights.init_missing, seed)
            tree = assembly.tree()
            params = {**params, **jax.device_put(tree, param_shardings(tree, mesh))}
            origins |= dict.fromkeys(PARTS[part], path) | {f"report of {path}": assembly.report()}
    others = [path for path in given.values() if f"report of {path}" in origins]
    for path in filter(None, (weights.initial, *given.values())):
        others += weights_of_others(path) if is_own(path) else []
    return params, origins | {OTHERS: list(dict.fromkeys(others))}


def _load_all_but_head(path: PathLike, model: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """The parameters of a checkpoint without its head for questions, whose answers are of other data."""
    saved = dataclasses.replace(model, num_answers=read_run(path).model.num_answers)
    return {name: tree for name, tree in load_params(path, saved, mesh).items() if name != HEAD}


def weights_of_others(folder: PathLike) -> list[str]:
    """Returns the files of other projects that a model of this one was made of or started from, by its records."""
    run = read_run(folder)
    for place in {folder_path(folder), run.folder}:
        for name in (ORIGINS_NAME, CONVERSION_NAME):
            if (place / name).exists():
                return json.loads((place / name).read_text())[OTHERS]
    return []


def assemble_part(
    part: str, path: PathLike, model: ModelConfig, init_missing: Sequence[str] = (), seed: int = 0
) -> Assembly:
    """Opens another project's weights for one part of a model, "vision" or "qformer"; see `stgt_jax.convert`."""
    options = Conversion(init_missing=tuple(init_missing), seed=seed)
    return assemble([open_source(path, options)], options=options, config=model, parts=PARTS[part])


def _random_params(model: STGT, seed: int, mesh: Mesh, *, without: Collection[str]) -> Any:
    def draw() -> Any:
        params = init_params(model, jax.random.key(seed))
        return {name: tree for name, tree in params.items() if name not in without}

    return jax.jit(draw, out_shardings=param_shardings(jax.eval_shape(draw), mesh))()


def _load_part(part: str, path: PathLike, model: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """Returns the parameters of one part from a checkpoint whose other parts may be those of another model."""
    check_initial_weights(read_run(path), model, part=part)
    shapes = param_shapes(STGT(model))
    wanted = {name: shapes[name] for name in PARTS[part]}
    saved = {name: tree for name, tree in load_saved_params(path, mesh).items() if name in wanted}

    def convert(trees: Any) -> Any:
        if part == "vision":
            trees = {"vision": _restack(trees["vision"], model.vision.open_blocks)}
        return jax.tree.map(lambda x: x.astype(jnp.float32), trees)

    _check_shapes(path, jax.eval_shape(convert, saved), wanted, part)
    return jax.jit(convert, out_shardings=param_shardings(wanted, mesh))(saved)


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


def _check_shapes(path: PathLike, saved: Any, wanted: Any, part: str) -> None:
    there, here = flatten_dict(saved, sep="/"), flatten_dict(wanted, sep="/")
    for name, leaf in here.items():
        if name not in there or there[name].shape != leaf.shape:
            found = f"shape {there[name].shape}" if name in there else "missing"
            raise STGTError(
                f"{path}: {name} is {found} there and of shape {leaf.shape} in this model; give the {part} options of"
                " that model, which are in its config.json"
            )
