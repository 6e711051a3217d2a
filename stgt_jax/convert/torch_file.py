"""Reads the tensors of a file that `torch.save` wrote (`.pth`, `.bin`), without torch and without running its code.

Such a file is a zip archive: a pickle, which describes a tree of objects, and the numbers of each tensor. A pickle is a
small program that may call any function. This reader admits tensors and plain containers. Objects of other packages
(a schedule, a config) become placeholders that do nothing; none is imported. Functions of Python itself, such as
`os.system`, are refused by their name.
"""

import collections
import io
import math
import pickle
import pickletools
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from stgt_jax.convert.stored_tensor import StoredTensor
from stgt_jax.errors import STGTError

_DTYPES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
    "float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64, "int32": np.int32, "int16": np.int16, "int8": np.int8, "uint8": np.uint8, "bool": np.bool_,
}  # fmt: skip
# What of Python's own modules a training checkpoint holds in good faith; they become placeholders, too.
_HARMLESS = {
    "_codecs.encode", "argparse.Namespace", "builtins.bytearray", "builtins.bytes", "builtins.complex",
    "builtins.dict", "builtins.frozenset", "builtins.list", "builtins.object", "builtins.range", "builtins.set",
    "builtins.slice", "builtins.tuple", "copyreg._reconstructor", "copyreg.__newobj__", "functools.partial",
    "types.SimpleNamespace", "uuid.UUID",
}  # fmt: skip
_HARMLESS_MODULES = {"collections", "datetime", "decimal", "enum", "fractions", "pathlib", "typing"}
_OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # of Python 2, which the usual protocol still writes
_OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_NOT_WEIGHTS = {
    b"version https://git-lfs": "is only a pointer of Git LFS; fetch the file itself with `git lfs pull`",
    b"<": "is a web page, not weights; download the file again",
}


def read_torch(path: Path) -> dict[str, Any]:
    """Returns the top level of the file: StoredTensor for a tensor, dicts and lists of them, and placeholders.

    Raises:
      STGTError: no such file; it is damaged, of the format before torch 1.6, or calls a function of Python.
    """
    try:
        content = _read_archive(path)
    except OSError as error:
        raise STGTError(f"'{path}' cannot be read: {error.strerror or error}") from error
    if isinstance(content, StoredTensor) or not isinstance(content, Mapping):
        raise STGTError(f"'{path}' holds {_kind(content)}, not a dict of weights; save `model.state_dict()`")
    return dict(content)


class Placeholder:
    """An object of another package, of which nothing is kept but the name of its class."""

    name = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Placeholder":
        """Takes whatever the real class takes."""
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> "Placeholder":
        """What the real object would return is a placeholder, too."""
        return self

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        """What the pickle does to the object has no effect."""

    __setstate__ = __setitem__ = append = extend = add = update = _nothing


@dataclass(frozen=True)
class _Storage:
    """The numbers of one or several tensors: an entry of the archive."""

    entry: str
    dtype: np.dtype | None  # None: bytes, whose dtype the tensor knows


@dataclass(frozen=True)
class _Dtype:
    dtype: np.dtype


class _Untyped:
    """torch.UntypedStorage."""


class _Archive:
    """The entries of the zip archive. The last one that was read is kept, as tensors may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except Exception as error:  # zipfile raises almost anything
            raise STGTError(
                f"'{path}' is not a file of torch.save, or it is not whole ({error}); download or copy it again"
            ) from error
        names = self._zip.namelist()
        pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1 or any("/code/" in name for name in names):
            raise STGTError(
                f"'{path}' is a zip archive, but not one of `torch.save`: save `model.state_dict()` with torch.save"
            )
        self.root = pickles[0].removesuffix("data.pkl")
        byteorder = f"{self.root}byteorder"
        self.byteorder = ">" if byteorder in names and self.read(byteorder) == b"big" else "<"
        self._last: tuple[str, bytes] = "", b""

    def size(self, entry: str) -> int:
        """The bytes of an entry. Raises STGTError where there is none, or where it is compressed."""
        try:
            info = self._zip.getinfo(entry)
        except KeyError:
            raise STGTError(f"'{self.path}' is damaged: its entry {entry} is missing") from None
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise STGTError(
                f"'{self.path}': {entry} is compressed, which torch.save never does; save the weights again"
            )
        return info.file_size

    def read(self, entry: str) -> bytes:
        """The content of an entry, whose checksum is compared."""
        self.size(entry)
        try:
            return self._zip.read(entry)
        except Exception as error:  # likewise
            raise STGTError(f"'{self.path}' is damaged ({error}); download or copy it again") from error

    def read_kept(self, entry: str) -> bytes:
        """As `read`, and keeps the content for the next call."""
        if self._last[0] != entry:
            self._last = "", b""  # before reading: two would take twice the memory
            self._last = entry, self.read(entry)
        return self._last[1]


def _read_archive(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(32)
    if start.startswith(_OLD_FORMAT):
        raise STGTError(
            f"'{path}' has the format before torch 1.6, which cannot be read safely; where torch is installed, run"
            f" python -c \"import torch; torch.save(torch.load('{path}', weights_only=True), 'new.pth')\""
        )
    for begin, message in _NOT_WEIGHTS.items():
        if start.lstrip().startswith(begin):
            raise STGTError(f"'{path}' {message}")
    archive = _Archive(path)
    program = archive.read(f"{archive.root}data.pkl")
    _check_program(path, program)
    try:
        return _Unpickler(archive, program).load()
    except STGTError:
        raise
    except Exception as error:  # a damaged pickle may fail in any way
        raise STGTError(
            f"'{path}' is damaged: its data.pkl cannot be read ({type(error).__name__}: {error})"
        ) from error


def _check_program(path: Path, program: bytes) -> None:
    """Refuses a pickle that is cut off, or that asks for more memory than its length can need."""
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if "PUT" in opcode.name and argument is not None and int(argument) > len(program):
                raise ValueError(f"{opcode.name} {argument}")
    except Exception as error:  # whatever a damaged pickle makes of it
        raise STGTError(f"'{path}' is damaged: its data.pkl is not a whole pickle ({error})") from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: _Archive, program: bytes) -> None:
        super().__init__(io.BytesIO(program))
        self._archive = archive
        self._placeholders: dict[str, type[Placeholder]] = {}

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns the storage that ("storage", type, key, device, size) describes."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or not isinstance(pid[2], str):
            raise STGTError(
                f"'{self._archive.path}': its data.pkl refers to {pid!r:.60}, which is not a tensor's storage"
            )
        if isinstance(pid[1], _Dtype):
            dtype: np.dtype | None = pid[1].dtype
        elif pid[1] is _Untyped:
            dtype = None
        else:
            raise STGTError(f"'{self._archive.path}': a storage of type {_kind(pid[1])} is not supported")
        return _Storage(f"{self._archive.root}data/{pid[2]}", dtype)

    def find_class(self, module: str, name: str) -> Any:
        """Returns this module's own stand-in for what the pickle names; imports nothing."""
        module = _OLD_NAMES.get(module, module)
        full = f"{module}.{name}"
        top = module.partition(".")[0]
        if full == "collections.OrderedDict":
            return collections.OrderedDict
        if top == "torch":
            if name in ("UntypedStorage", "TypedStorage"):
                return _Untyped
            if name in _DTYPES:
                return _Dtype(np.dtype(_DTYPES[name]))
            if full in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
                return self._tensor
            if full == "torch._utils._rebuild_tensor_v3":
                return self._tensor_of_bytes
            if full == "torch._utils._rebuild_parameter":
                return _parameter
            if full == "torch.Size":
                return tuple
        is_python = top in sys.stdlib_module_names
        if is_python and full not in _HARMLESS and top not in _HARMLESS_MODULES:
            raise STGTError(
                f"'{self._archive.path}' is refused: its data.pkl calls {full}, which has no place among weights; get"
                " the weights from a source that you trust, as safetensors if there are any"
            )
        if full not in self._placeholders:
            self._placeholders[full] = type(name.rpartition(".")[2], (Placeholder,), {"name": full})
        return self._placeholders[full]

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
        return self._view(storage, storage.dtype if isinstance(storage, _Storage) else None, offset, size, stride)

    def _tensor_of_bytes(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
    ) -> Any:
        return self._view(storage, dtype.dtype if isinstance(dtype, _Dtype) else None, offset, size, stride)

    def _view(self, storage: Any, dtype: np.dtype | None, offset: Any, size: Any, stride: Any) -> StoredTensor:
        numbers = [offset, *size, *stride]
        valid = isinstance(storage, _Storage) and len(size) == len(stride)
        if dtype is None or not valid or any(type(n) is not int or n < 0 for n in numbers):
            raise STGTError(f"'{self._archive.path}' is damaged: a tensor of it has no valid storage, size or stride")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if math.prod(size) else 0
        num_bytes = self._archive.size(storage.entry)
        if last * dtype.itemsize > num_bytes:
            raise STGTError(
                f"'{self._archive.path}' is damaged: a tensor of shape {tuple(size)} needs {last * dtype.itemsize}"
                f" bytes of {storage.entry}, which has {num_bytes}"
            )
        # One number is enough for a tensor of any shape with strides of zero, as `expand` makes; such a one may ask for
        # more memory than there is.
        if math.prod(size) * dtype.itemsize > max(num_bytes, 1 << 20):
            raise STGTError(
                f"'{self._archive.path}': a tensor of shape {tuple(size)} repeats its numbers; save it whole"
            )

        def read() -> np.ndarray:
            data = np.frombuffer(self._archive.read_kept(storage.entry), np.uint8)
            stored = data[: data.size // dtype.itemsize * dtype.itemsize].view(dtype)
            if self._archive.byteorder == ">" and dtype.itemsize > 1:
                stored = stored.byteswap()
            strides = [step * dtype.itemsize for step in stride]
            return np.lib.stride_tricks.as_strided(stored[offset:], size, strides, writeable=False)

        return StoredTensor(tuple(size), dtype, read)


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _kind(value: Any) -> str:
    if isinstance(value, Placeholder):
        return value.name
    if isinstance(value, type) and issubclass(value, Placeholder):
        return value.name
    return "a tensor" if isinstance(value, StoredTensor) else f"a {type(value).__name__}"
