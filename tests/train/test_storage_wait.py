"""Waiting for storage: what is said meanwhile, when it ends, and why a write failed."""

import threading

import pytest

from stgt_jax.train import storage_wait
from stgt_jax.train.storage_wait import cause_of, in_time


def test_errors_of_the_wait_pass() -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    in_time(lambda: None, "checkpoints/1")
    with pytest.raises(OSError, match="No space left"):
        in_time(fail, "checkpoints/1")


def test_storage_that_does_not_answer_ends_the_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storage_wait, "SAVE_LIMIT", 2)
    monkeypatch.setattr(storage_wait, "NOTICE", 1)
    with pytest.raises(TimeoutError, match="the storage has not answered for 2 s"):
        in_time(lambda: threading.Event().wait(30), "checkpoints/1")
    assert "checkpoints/1: has been written for 1 s; training waits" in caplog.text


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
