"""Folders in Google Cloud Storage, gs://bucket/run: asked after where they are given, before anything long begins."""

import os

from etils import epath

from data_pipeline.storage import in_bucket
from stgt_jax.errors import STGTError


def check_storage(*folders: str | os.PathLike[str]) -> None:
    """Returns if those of the folders that lie in a bucket can be asked after; they need not exist.

    Raises:
      STGTError: a store that Orbax or ArrayRecord cannot use, the extra is missing, or the bucket does not answer.
    """
    for folder in filter(in_bucket, folders):
        if not os.fspath(folder).startswith("gs://"):
            raise STGTError(f"'{folder}': of object stores only gs:// can be used; mount this one as a folder, or copy")
        try:
            epath.Path(folder).exists()
        except ImportError as error:
            raise STGTError(f"'{folder}' needs an extra: pip install --editable \".[gcs]\"") from error
        except Exception as error:  # credentials, network, permissions: each library has its own kinds
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise STGTError(f"'{folder}' cannot be reached ({reason})") from error
