"""Exported models: folders with what is needed to use a trained model, and nothing else.

    FOLDER/config.json            the sections of the run's config.json that describe the model and its inputs
          /vocab.txt              the vocabulary
          /weights.safetensors    the parameters, named by their path in the tree, such as vision/patch_embed/kernel

`stgt export` adds origin.json, which records how the weights were made and what they score; nothing reads it.
The models that come with the package are in `stgt_jax/pretrained`.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from stgt_jax.checks import did_you_mean
from stgt_jax.errors import STGTError
from stgt_jax.run_folder import PathLike, Run, folder_path, write_run

WEIGHTS_NAME = "weights.safetensors"
PRETRAINED = Path(__file__).parent / "pretrained"
_SECTIONS = (
    "model",
    "preparation",
    "vocab_sha256",
    "random_parameters",
    "answers",
    "question_length",
)  # of config.json


def export(run: Run, params: Any, folder: PathLike) -> None:
    """Writes a model to `folder`, over a model that is there already.

    Args:
      run: the run that trained the model.
      params: the parameters of the model.
      folder: where to write; created if it does not exist.
    """
    flat = {name: np.asarray(leaf) for name, leaf in flatten_dict(jax.device_get(params), sep="/").items()}
    write_run(
        folder, {name: run.content[name] for name in _SECTIONS if name in run.content}, run.vocab_file.read_bytes()
    )
    (folder_path(folder) / WEIGHTS_NAME).write_bytes(safetensors.numpy.save(flat))


def write_model(
    folder: PathLike,
    content: Mapping[str, Any],
    vocab: bytes,
    shapes: Mapping[str, tuple[int, ...]],
    parameters: Iterable[tuple[str, Iterable[np.ndarray]]],
    more: Mapping[str, Mapping[str, Any]],
) -> None:
    """Writes a model whose parameters come one after the other, so that one layer of them is in memory at a time.

    Args:
      folder: where to write; created if it does not exist. A model that is there already is replaced.
      content: of config.json, as `export` writes it.
      vocab: content of vocab.txt.
      shapes: of each parameter, by its path; all are float32.
      parameters: each parameter's path and its layers, in any order.
      more: further JSON files, name -> content.
    """
    place = folder_path(folder)
    place.mkdir(parents=True, exist_ok=True)
    offsets, end = {}, 0
    for path, shape in shapes.items():
        offsets[path] = end, end + 4 * math.prod(shape)
        end = offsets[path][1]
    described = {
        path: {"dtype": "F32", "shape": list(shape), "data_offsets": offsets[path]} for path, shape in shapes.items()
    }
    header = json.dumps(described, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    partial = place / f"{WEIGHTS_NAME}.partial"
    with partial.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        start = file.tell()
        for path, layers in parameters:
            file.seek(start + offsets[path][0])
            for layer in layers:
                file.write(np.ascontiguousarray(layer, "<f4").tobytes())
            if file.tell() != start + offsets[path][1]:
                raise STGTError(f"{path} has another size than {shapes[path]}")
    partial.replace(place / WEIGHTS_NAME)
    for name, values in more.items():
        (place / name).write_text(json.dumps(values, indent=2) + "\n")
    write_run(place, content, vocab)


def is_exported(folder: PathLike) -> bool:
    """Whether `folder` is that of an exported model."""
    return (folder_path(folder) / WEIGHTS_NAME).exists()


def read_weights(folder: PathLike) -> dict[str, Any]:
    """Returns the parameter tree of an exported model, as numpy arrays.

    Raises:
      STGTError: weights.safetensors is missing or damaged.
    """
    file = folder_path(folder) / WEIGHTS_NAME
    try:
        return unflatten_dict(safetensors.numpy.load(file.read_bytes()), sep="/")
    except (OSError, safetensors.SafetensorError) as error:
        raise STGTError(f"'{file}' is missing or damaged ({error}); export the model again") from error


def model_folder(model: PathLike) -> PathLike:
    """Returns the folder of a model that comes with the package, if `model` is its name, else `model` itself.

    Raises:
      STGTError: `model` is a single word, but neither such a name nor a folder.
    """
    if not isinstance(model, str | os.PathLike) or not os.fspath(model):
        raise STGTError(f"{model!r} is not a model; give the name of one or a folder, as a str or a Path")
    known = sorted(file.parent.name for file in PRETRAINED.glob(f"*/{WEIGHTS_NAME}"))
    if model in known:
        return PRETRAINED / model
    if isinstance(model, str) and re.fullmatch(r"[\w-]+", model) and not os.path.exists(model):
        raise STGTError(
            f"no model and no folder '{model}'{did_you_mean(model, known)}; or give the folder of a run (its"
            " --workdir), of one of its checkpoints/STEP, or of an exported model"
        )
    return model
