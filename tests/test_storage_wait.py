"""Waiting for storage: what is said meanwhile, when it ends, and why a write failed."""

import threading

import pytest

from stgt_jax import storage
from stgt_jax.errors import StorageError
from stgt_jax.storage import cause_of, in_time, is_storage_away


def test_errors_of_the_wait_pass() -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    assert in_time(lambda: 3, "checkpoints/1") == 3
    with pytest.raises(OSError, match="No space left"):
        in_time(fail, "checkpoints/1")


def test_storage_that_does_not_answer_ends_the_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storage, "STORAGE_LIMIT", 2)
    monkeypatch.setattr(storage, "NOTICE", 1)
    with pytest.raises(StorageError, match="checkpoints/1: storage has not answered for 2 s"):
        in_time(lambda: threading.Event().wait(30), "checkpoints/1")
    assert "checkpoints/1: storage has taken 1 s for it so far; the run waits" in caplog.text


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(30, "Read-only file system"), "Read-only file system"),
        (ValueError("... [OS error 28: ENOSPC No space left on device]"), "No space left on device"),
        (ValueError("RESOURCE_EXHAUSTED: Error writing"), "No space left on device"),
        (ValueError("NOT_FOUND: Error writing"), "its folder is gone"),
        (RuntimeError("something\nwith many lines"), "RuntimeError: something"),
    ],
)  # fmt: skip
def test_cause_is_one_line(error: Exception, cause: str) -> None:
    assert cause_of(error) == cause


@pytest.mark.parametrize(
    ("error", "is_away"),
    [
        (ConnectionResetError("reset by peer"), True),
        (PermissionError(13, "Permission denied"), True),
        (ValueError("UNAVAILABLE: Error reading gs://bucket/run: HTTP 503"), True),
        (type("HttpError", (Exception,), {"__module__": "gcsfs.retry"})("Backend Error, 503"), True),
        (FileNotFoundError(2, "No such file"), False),
        (ValueError("DATA_LOSS: Error decoding chunk"), False),
    ],
)
def test_storage_that_is_away_is_told_from_damage(error: Exception, is_away: bool) -> None:
    assert is_storage_away(error) == is_away
