"""Paths that must be local."""

import os
from pathlib import Path

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
