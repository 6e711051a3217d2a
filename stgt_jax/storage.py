"""Addresses in object stores such as gs://bucket/folder, and a check that they can be reached before any long work."""

import os

from etils import epath

from stgt_jax.checks import in_bucket
from stgt_jax.errors import STGTError


def check_storage(*folders: str | os.PathLike[str]) -> None:
    """Checks the folders that are in a bucket, such as gs://bucket/run. They need not exist.

    Raises:
      STGTError: the store is not supported, the `gcs` extra is not installed, or the bucket cannot be reached.
    """
    for folder in filter(in_bucket, folders):
        if not os.fspath(folder).startswith("gs://"):
            raise STGTError(f"'{folder}': only gs:// is supported; mount another object store as a folder, or copy it")
        try:
            epath.Path(folder).exists()
        except ImportError as error:
            raise STGTError(f"'{folder}' needs an extra: pip install --editable \".[gcs]\"") from error
        except Exception as error:  # credentials, network, permissions: each library has exceptions of its own
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise STGTError(f"'{folder}' cannot be reached ({reason})") from error
