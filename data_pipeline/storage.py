"""Files that may be in a bucket, for what reads and writes local files only."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from data_pipeline.errors import DataError
from stgt_jax.checks import in_bucket


def local_path(path: str | os.PathLike[str]) -> Path:
    """Returns `path` as a Path, which would take gs://bucket for a folder named "gs:".

    Raises:
      DataError: it is the address of a bucket.
    """
    if in_bucket(path):
        raise DataError(
            f"'{path}' is in a bucket, but a local path is needed here; copy the files from or to the bucket"
        )
    return Path(path)


def any_path(path: str | os.PathLike[str]) -> Path | epath.Path:
    """Returns `path` as a Path, or as one that reaches into a bucket."""
    return epath.Path(path) if in_bucket(path) else Path(path)


def size_of(path: Path | epath.Path) -> int:
    """Returns the bytes of a file."""
    # epath's stat() fails for a local file whose owner has no name.
    return epath.Path(path).stat().length if in_bucket(path) else os.path.getsize(path)


@contextlib.contextmanager
def written_locally(path: Path | epath.Path) -> Iterator[Path]:
    """Yields the path of a local file to write, which becomes `path` at the end; after an error nothing is there."""
    if not in_bucket(path):
        unfinished = Path(path).with_name(f".{path.name}.unfinished")
        try:
            yield unfinished
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder, path.name)
        with Path(folder, path.name).open("rb") as file, epath.Path(path).open("wb") as target:
            shutil.copyfileobj(file, target, 16 << 20)


@contextlib.contextmanager
def read_locally(path: Path | epath.Path) -> Iterator[Path]:
    """Yields a local file with the content of `path`: that file itself, or a copy of what is in the bucket.

    Raises:
      OSError: it cannot be copied.
    """
    if not in_bucket(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        with epath.Path(path).open("rb") as file, Path(folder, path.name).open("wb") as target:
            shutil.copyfileobj(file, target, 16 << 20)
        yield Path(folder, path.name)


def copy_file(source: Path | epath.Path, target: Path | epath.Path) -> None:
    """Makes `target` the same file as `source`, or a copy where that is not possible."""
    if in_bucket(source) and in_bucket(target):
        _copy_in_bucket({source: target})
        return
    with contextlib.suppress(OSError):
        target.unlink(missing_ok=True)
        os.link(source, target)
        return
    shutil.copyfile(source, target)


def move_files(targets: Mapping[Any, Any]) -> None:
    """Moves files, given as source -> target, both on the disk or both in one bucket."""
    for source, target in targets.items():
        if not in_bucket(source):
            source.replace(target)
    moved = {source: target for source, target in targets.items() if in_bucket(source)}
    _copy_in_bucket(moved)
    for source in moved:
        source.unlink()


def _copy_in_bucket(targets: Mapping[Any, Any]) -> None:
    """Has the bucket copy files itself; epath would load each to this machine."""
    if targets:
        import fsspec  # comes with the extra for buckets

        sources = [os.fspath(source) for source in targets]
        fsspec.core.url_to_fs(sources[0])[0].copy(sources, [os.fspath(target) for target in targets.values()])
