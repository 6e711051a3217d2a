"""Opens files of weights, safetensors or torch's: one file, or a folder as Hugging Face has it."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from stgt_jax.checks import parse_json
from stgt_jax.convert.stored_tensor import StoredTensor
from stgt_jax.convert.torch_file import Placeholder, read_torch
from stgt_jax.errors import STGTError

SAFETENSORS, TORCH = (".safetensors",), (".pth", ".pt", ".bin", ".ckpt")
# What a folder may hold, the first that is there counts: safetensors before pickles.
_IN_FOLDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
WEIGHT_SUFFIXES = SAFETENSORS + TORCH
_WRAPPERS = ("model", "state_dict", "module")  # keys under which training checkpoints keep the weights
_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
Tensors = dict[str, StoredTensor]


def open_tensors(path: Path) -> tuple[Tensors, list[str]]:
    """Opens the weights of a file or a folder.

    Returns:
      The tensors by name, and the names of what else a training checkpoint held, such as "optimizer".

    Raises:
      STGTError: there are no weights, a file of them is missing or damaged, or a pickle calls what it must not.
    """
    if path.is_dir():
        return _open_folder(path)
    return _open_file(path)


def _open_file(path: Path) -> tuple[Tensors, list[str]]:
    if not path.is_file():
        raise STGTError(f"'{path}': no such file of weights")
    if path.suffix in SAFETENSORS:
        return open_safetensors(path), []
    if path.suffix in TORCH:
        return _open_torch(path)
    raise STGTError(f"'{path}' is not a file of weights by its name; known are {', '.join(WEIGHT_SUFFIXES)}")


def is_weights(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a file of weights by its name, or a folder that holds such files."""
    place = Path(os.fspath(path))
    return place.suffix in WEIGHT_SUFFIXES or any((place / name).exists() for name in _IN_FOLDER)


def open_safetensors(path: Path) -> Tensors:
    """Opens a safetensors file. Raises STGTError where it is missing or damaged, or has a dtype that is not known."""
    try:
        file = safetensors.safe_open(path, "numpy")  # open as long as one of its tensors is
        slices = {name: file.get_slice(name) for name in list(file.keys())}
    except (OSError, safetensors.SafetensorError) as error:
        raise STGTError(f"'{path}' is missing or damaged ({error}); download or copy it again") from error
    for name, one in slices.items():
        if one.get_dtype() not in _DTYPES:
            raise STGTError(f"'{path}': {name} has the dtype {one.get_dtype()}; known are {', '.join(_DTYPES)}")
    return {
        name: StoredTensor(
            tuple(one.get_shape()), np.dtype(_DTYPES[one.get_dtype()]), partial(file.get_tensor, name), one.__getitem__
        )
        for name, one in slices.items()
    }


def _open_torch(path: Path) -> tuple[Tensors, list[str]]:
    content, others, seen = read_torch(path), list[str](), set[int]()
    while key := next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None):
        if id(content) in seen:
            raise STGTError(f"'{path}' is damaged: its {key!r} holds itself")
        seen.add(id(content))
        others += [str(name) for name in content if name != key]
        content = content[key]
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, StoredTensor):
            kind = value.name if isinstance(value, Placeholder) else type(value).__name__
            raise STGTError(
                f"'{path}': {name!r:.80} is of type {kind}, not a tensor; known are a dict of tensors, and one under"
                f" {' or '.join(map(repr, _WRAPPERS))}"
            )
    prefix = "module."  # of DistributedDataParallel
    wrapped = content and all(name.startswith(prefix) for name in content)
    return {name.removeprefix(prefix) if wrapped else name: value for name, value in content.items()}, others


def _open_folder(folder: Path) -> tuple[Tensors, list[str]]:
    name = next((name for name in _IN_FOLDER if (folder / name).exists()), None)
    if name is None:
        raise STGTError(f"'{folder}' holds none of {', '.join(_IN_FOLDER)}; give the folder of a model, or a file")
    if not name.endswith(".index.json"):
        return _open_file(folder / name)
    index = folder / name
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise STGTError(f"'{index}' has no \"weight_map\" from names to files; download it again")
    tensors: Tensors = {}
    others: list[str] = []
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file or not file:
            raise STGTError(f"'{index}' names '{file}', which is not a file of that folder")
        opened, more = _open_file(folder / file)
        tensors |= opened
        others += more
    if absent := sorted(weight_map.keys() - tensors.keys()):
        raise STGTError(f"'{index}' names {len(absent)} tensors that its files lack, the first is '{absent[0]}'")
    return tensors, others


def read_json(file: Path) -> dict[str, Any]:
    """Returns the content of a JSON file. Raises STGTError where it is missing or does not hold an object."""
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise STGTError(f"'{file}' is missing or not JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise STGTError(f"'{file}' is not a JSON object; download it again")
    return content
