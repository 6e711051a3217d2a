"""Storage of runs, also in buckets such as gs://bucket/folder: whether it can be reached, and waiting for it."""

import logging
import os
import re
import threading
from collections.abc import Callable
from typing import TypeVar

from etils import epath

from stgt_jax.checks import in_bucket
from stgt_jax.errors import STGTError, StorageError

REACH_LIMIT = 120  # seconds for the first answer of a bucket
STORAGE_LIMIT = 1200  # seconds for writing a checkpoint or a log, or reading a small file; the run waits
ARRAYS_LIMIT = 7200  # seconds for reading the arrays of a checkpoint: 14 GB of the paper's model at 2 MB/s
NOTICE = 60  # seconds between two lines that say so
_NETWORK_LIBRARIES = ("aiohttp", "gcsfs", "google.api_core", "google.auth", "requests")
_UNREACHABLE = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED")  # statuses of TensorStore
Result = TypeVar("Result")

_log = logging.getLogger(__name__)


def check_storage(*folders: str | os.PathLike[str]) -> None:
    """Checks the folders that are in a bucket, such as gs://bucket/run. They need not exist.

    Raises:
      STGTError: the store is not supported, the `gcs` extra is not installed, or the bucket cannot be reached within
        `REACH_LIMIT`.
    """
    for folder in filter(in_bucket, folders):
        if not os.fspath(folder).startswith("gs://"):
            raise STGTError(f"'{folder}': only gs:// is supported; mount another object store as a folder, or copy it")
        try:
            in_time(epath.Path(folder).exists, os.fspath(folder), REACH_LIMIT)
        except ImportError as error:
            raise STGTError(f"'{folder}' needs an extra: pip install --editable \".[gcs]\"") from error
        except StorageError:
            raise
        except Exception as error:  # credentials, network, permissions: each library has exceptions of its own
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise STGTError(f"'{folder}' cannot be reached ({reason})") from error


def in_time(work: Callable[[], Result], what: str, limit: float | None = None) -> Result:
    """Returns what `work` does with the storage, and says every `NOTICE` seconds that `what` is waited for.

    Args:
      work: runs in a thread of its own, which is left alone where it does not end in time.
      what: path of what is read or written.
      limit: seconds; by default `STORAGE_LIMIT`.

    Raises:
      StorageError: it has taken that long.
    """
    limit = STORAGE_LIMIT if limit is None else limit
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="storage", daemon=True)
    thread.start()
    waited = 0.0
    while thread.is_alive() and waited < limit:
        thread.join(step := min(NOTICE, limit - waited))
        waited += step
        if thread.is_alive() and waited < limit:
            _log.warning("warning: %s: storage has taken %.0f s for it so far; the run waits", what, waited)
    if errors:
        raise errors[0]
    if not results:
        raise StorageError(
            f"{what}: storage has not answered for {limit:.0f} s; start again when it does, a training with --resume"
        )
    return results[0]


def is_storage_away(error: Exception) -> bool:
    """Whether a read failed for storage that is away or refuses, so that nothing is known of what it holds."""
    if isinstance(error, ConnectionError | TimeoutError | PermissionError):
        return True
    return type(error).__module__.startswith(_NETWORK_LIBRARIES) or any(status in str(error) for status in _UNREACHABLE)


def cause_of(error: Exception) -> str:
    """Why a write failed, without the many lines that the storage library adds."""
    text = str(error)
    if found := re.search(r"\[OS error \d+: \w+ ([^\]]+)\]", text):
        return found[1]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    for sign, reason in (("RESOURCE_EXHAUSTED", "No space left on device"), ("NOT_FOUND", "its folder is gone")):
        if sign in text:
            return reason
    return f"{type(error).__name__}: {next(iter(text.splitlines()), '')[:200]}"
