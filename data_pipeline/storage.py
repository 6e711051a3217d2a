"""Where files lie: on this machine, or in a bucket of an object store, by an address such as gs://bucket/folder."""

import os
from pathlib import Path

from data_pipeline.errors import DataError


def in_bucket(path: str | os.PathLike[str]) -> bool:
    """Returns whether `path` is the address of an object store and no local one."""
    return "://" in os.fspath(path)


def local_path(path: str | os.PathLike[str]) -> Path:
    """Returns `path`, which must be local: Path itself would take gs://bucket for a folder named "gs:".

    Raises:
      DataError: it is the address of a bucket.
    """
    if in_bucket(path):
        raise DataError(f"'{path}' lies in a bucket, here only a local path will do; copy from or to the bucket")
    return Path(path)
