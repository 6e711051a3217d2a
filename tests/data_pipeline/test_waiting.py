"""Waiting for data: how long, and what is said of a worker process that is gone."""

import threading
import time

import pytest

from data_pipeline import waiting
from data_pipeline.errors import DataError
from data_pipeline.waiting import LimitedIterator


class Items:
    """Numbers, the one at `stuck` of which never comes, or which end with `error`."""

    def __init__(self, *, stuck: int = -1, error: Exception | None = None) -> None:
        self.stuck, self.error, self.closed, self.number = stuck, error, False, -1

    def __next__(self) -> int:
        self.number += 1
        if self.number == self.stuck:
            threading.Event().wait(60)
        if self.number == 3:
            raise self.error or StopIteration
        return self.number

    def close(self) -> None:
        self.closed = True


def test_items_come_in_order_and_closing_ends_them() -> None:
    items = Items()
    limited = LimitedIterator(items, 10, "'shards'")
    assert list(limited) == [0, 1, 2]
    limited.close()
    assert items.closed


def test_item_that_does_not_come_is_an_error_that_names_place_and_option() -> None:
    limited = LimitedIterator(Items(stuck=1), 0.2, "'shards'")
    assert next(limited) == 0
    began = time.monotonic()
    with pytest.raises(DataError, match=r"'shards': no data within data\.wait_limit=0\.2 s; the storage or a worker"):
        next(limited)
    limited.close()
    assert time.monotonic() - began < 5


def test_errors_of_the_items_pass() -> None:
    limited = LimitedIterator(Items(error=DataError("record 3 is damaged")), 10, "'shards'")
    with pytest.raises(DataError, match="record 3 is damaged"):
        list(limited)
    limited.close()


@pytest.mark.parametrize(
    ("code", "kills", "words"),
    [
        (9, 1, "the system killed it because memory ran out; continue with --resume"),
        (9, 0, "it was killed, as the system does when memory runs out"),
        (11, 1, "signal 11 ended it"),
    ],
)
def test_worker_that_is_gone_is_named(monkeypatch, tmp_path, code: int, kills: int, words: str) -> None:
    counters = tmp_path / "vmstat"
    counters.write_text("nr_free_pages 10\noom_kill 4\n")
    monkeypatch.setattr(waiting, "_OUT_OF_MEMORY_KILLS", counters)
    gone = RuntimeError(f"Worker process was terminated unexpectedly with exit code -{code}. Search the logs")
    limited = LimitedIterator(Items(error=gone), 10, "'shards'")
    counters.write_text(f"nr_free_pages 10\noom_kill {4 + kills}\n")
    with pytest.raises(DataError, match=f"'shards': a worker process that loads data is gone: {words}"):
        list(limited)
    limited.close()
