"""Reading what Orbax wrote for one checkpoint: nested dicts of arrays, and JSON. Damage is noticed and named."""

import copy
import gc
import json
import logging
import sys
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from flax.traverse_util import flatten_dict

from stgt_jax.errors import STGTError, StorageError
from stgt_jax.exported import WEIGHTS_NAME
from stgt_jax.run_folder import CONFIG_NAME
from stgt_jax.storage import ARRAYS_LIMIT, cause_of, in_time, is_storage_away

_NUM_ANSWERS = 16  # descriptions of stores that are remembered; a checkpoint has a few
_answers: dict[Any, Any] = {}
_to_json = ts.KvStore.Spec.to_json


class DamagedCheckpoint(STGTError):  # noqa: N818  (what was found, not what went wrong here)
    """A part of a checkpoint is missing, cannot be read, or is not what was saved."""


def restore_arrays(folder: epath.Path, template: Any) -> Any:
    """Reads nested dicts of arrays into the shapes, dtypes and layout of `template`, and checks their checksum.

    Raises:
      DamagedCheckpoint: as its name says.
      STGTError: the shapes are not those of the template.
    """
    arrays = read_arrays(folder, template)
    verify(folder, arrays, read_json(folder.parent / "checksums"))
    return cast_arrays(arrays, template)


def read_arrays(folder: epath.Path, template: Any) -> Any:
    """Like `restore_arrays`, but unchecked and in the dtypes that were saved, as the checksum is of those numbers.

    A frozen matrix in bfloat16 may train in this run, or the other way round. Processes need not wait for each other.
    """
    saved = saved_shapes(folder)
    check_same_shapes(folder, saved, template)
    as_saved = jax.tree.map(lambda x, y: jax.ShapeDtypeStruct(x.shape, y.dtype, sharding=x.sharding), template, saved)
    args = ocp.args.StandardRestore(as_saved)
    return _read(folder, lambda: ocp.StandardCheckpointHandler().restore(folder, args=args), ARRAYS_LIMIT)


def cast_arrays(arrays: Any, template: Any) -> Any:
    """Returns the arrays in the dtypes of `template`."""
    return jax.tree.map(lambda x, y: x if x.dtype == y.dtype else x.astype(y.dtype), arrays, template)


def verify(folder: epath.Path, arrays: Any, checksums: Any) -> None:
    """Raises DamagedCheckpoint where the arrays do not have the checksum that was saved; all processes must call it."""
    try:
        saved = checksums[folder.name]
    except (KeyError, TypeError) as error:
        raise _damaged(folder, error) from error
    if int(checksum(arrays)) != saved:
        raise _damaged(folder, ValueError("its numbers are not those that were saved"))


def saved_shapes(folder: epath.Path) -> Any:
    """Returns the shapes and dtypes of the arrays in a folder. Raises DamagedCheckpoint."""
    return _read(folder, lambda: ocp.StandardCheckpointHandler().metadata(folder).tree)


def check_written(folder: epath.Path) -> None:
    """Checks that a folder which was just written has the files through which its arrays are found.

    `saved_shapes` looks closer, but a run must not call it for each checkpoint: TensorStore's `to_json`, through which
    Orbax finds the shapes, never frees what it returns. That is a megabyte a call for 450 arrays.

    Raises:
      DamagedCheckpoint: one of them is missing or empty.
      StorageError: storage does not answer.
    """
    for name in ("_METADATA", "manifest.ocdbt"):
        if not _read(folder, (folder / name).read_bytes):
            raise _damaged(folder, ValueError(f"{name} is empty"))


def read_json(folder: epath.Path) -> Any:
    """Returns the JSON value in a folder. Raises DamagedCheckpoint."""
    return _read(folder, lambda: ocp.JsonCheckpointHandler().restore(folder, args=ocp.args.JsonRestore()))


def json_checksum(value: Any) -> int:
    """Returns the CRC-32 of a JSON value."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


@jax.jit
def checksum(tree: Any) -> jax.Array:
    """A uint32 that any one damaged number changes, the same in every layout; leaves have dtypes of 4 or 2 bytes.

    It sums the bits of the numbers times odd weights, which differ by position: sums of integers have no rounding, and
    an odd weight loses no bit modulo 2**32.
    """
    total = jnp.uint32(0)
    for index, leaf in enumerate(jax.tree.leaves(tree)):
        position = jnp.zeros(leaf.shape, jnp.uint32)
        for axis, size in enumerate(leaf.shape):
            position = position * size + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")).astype(jnp.uint32)
        total += (2 * index + 1) * jnp.sum(bits * (2 * position + 1), dtype=jnp.uint32)
    return total


def check_same_shapes(folder: epath.Path, saved: Any, template: Any) -> None:
    """Raises STGTError naming the first array whose shape in the checkpoint is not that of the template."""
    there = {"/".join(path): tuple(leaf.shape) for path, leaf in flatten_dict(saved).items()}
    here = {"/".join(path): tuple(leaf.shape) for path, leaf in flatten_dict(template).items()}
    different = next((name for name in [*here, *there] if here.get(name) != there.get(name)), None)
    if different is None:
        return
    if folder.name == "optimizer":
        mend = f"it was trained with other frozen parts or options; use --weights.initial {folder.parent}"
    else:
        place = folder.parent if folder.name == WEIGHTS_NAME else folder.parents[2]
        mend = f"these weights are of another model size; use the config in {place / CONFIG_NAME}"
    shapes = [f"shape {tree[different]}" if different in tree else "missing" for tree in (there, here)]
    raise STGTError(f"{folder.parent}: {different} is {shapes[0]} there and {shapes[1]} in this model: {mend}")


def _read(folder: epath.Path, read: Callable[[], Any], limit: float | None = None) -> Any:
    """Returns what `read` does, within a limit in seconds.

    Raises:
      DamagedCheckpoint: whatever the storage library made of a damaged file.
      StorageError: storage does not answer, or refuses.
    """
    try:
        return in_time(read, str(folder), limit)
    except StorageError:
        raise
    except Exception as error:
        if is_storage_away(error):
            raise StorageError(f"{folder}: cannot be reached ({cause_of(error)}); start again when it can") from error
        damaged = _damaged(folder, error)
    _end_abandoned_reads()
    raise damaged


def _end_abandoned_reads() -> None:
    """Deletes the reads that the storage library gave up: they complain on standard error when they are deleted."""
    quiet_storage_library()
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    gc.collect()
    sys.unraisablehook = before


def quiet_storage_library() -> None:
    """Keeps Orbax from printing hundreds of lines for one failed read or write, which the caller reports in one."""
    for name in ("absl", "asyncio"):
        logger = logging.getLogger(name)
        if _is_for_the_user not in logger.filters:
            logger.addFilter(_is_for_the_user)
    if not isinstance(sys.unraisablehook, _WithoutClosedLoops):
        sys.unraisablehook = _WithoutClosedLoops(sys.unraisablehook)


def spare_memory_of_storage_library() -> None:
    """Lets TensorStore describe each store once: the 350 bytes that `to_json` returns are never freed (0.1.86).

    Orbax calls it for every array of a checkpoint.
    """
    ts.KvStore.Spec.to_json = _remembered_json  # type: ignore[method-assign, assignment]


def _remembered_json(spec: Any, include_defaults: bool = False) -> Any:
    """What `to_json` of `tensorstore.KvStore.Spec` returns. Orbax's threads may call it at once."""
    question = repr(spec), include_defaults
    answer = _answers.get(question)
    if answer is None:
        if len(_answers) >= _NUM_ANSWERS:
            _answers.clear()
        answer = _answers[question] = _to_json(spec, include_defaults)
    return copy.deepcopy(answer)


def _is_for_the_user(record: logging.LogRecord) -> bool:
    is_storage = "orbax" in record.pathname or "asyncio" in record.pathname
    return not (is_storage and record.levelno >= logging.ERROR)


class _WithoutClosedLoops:
    """A `sys.unraisablehook` that leaves out what threads of the storage library say when nobody waits for them."""

    def __init__(self, before: Callable[[Any], Any]) -> None:
        self._before = before

    def __call__(self, raised: Any) -> None:
        if str(raised.exc_value) != "Event loop is closed":
            self._before(raised)


def _damaged(folder: epath.Path, error: Exception) -> DamagedCheckpoint:
    reason = next(iter(str(error).splitlines()), "")[:200]
    return DamagedCheckpoint(
        f"{folder}: cannot be read, it is incomplete or damaged ({type(error).__name__}: {reason}); give another"
        " checkpoint; a run that is resumed continues from the newest whole one"
    )
