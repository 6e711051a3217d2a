"""Taking items that worker processes and storage make, with a limit for the wait, and names for what went wrong."""

import multiprocessing
import queue
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError

_KILLED = re.compile(r"terminated unexpectedly with exit code -(\d+)")
_OUT_OF_MEMORY_KILLS = Path("/proc/vmstat")  # of Linux, in a line "oom_kill NUMBER"


class LimitedIterator(Iterator[Any]):
    """The items of an iterator, each of which must come within `limit` seconds.

    They are taken in a thread of its own, as nothing else can end a wait for a worker process or a file system.

    Args:
      items: the iterator; it has a method `close`.
      limit: seconds.
      source: what the items are read from, for the message.
    """

    def __init__(self, items: Any, limit: float, source: str) -> None:
        self._items, self._limit, self._source = items, limit, source
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._kills_before = _out_of_memory_kills()
        self._stuck = False
        self._thread = threading.Thread(target=self._serve, name="data", daemon=True)
        self._thread.start()

    def __next__(self) -> Any:
        """Returns the next item.

        Raises:
          DataError: it does not come in time, or a worker process was killed.
        """
        self._asked.put(True)
        try:
            item, error = self._answers.get(timeout=self._limit)
        except queue.Empty:
            self._stuck = True
            raise DataError(
                f"{self._source}: no data within data.wait_limit={self._limit} s; the storage or a worker process does"
                " not answer; see that both are well and continue with --resume"
            ) from None
        if error is not None and (killed := _KILLED.search(str(error))):
            raise DataError(self._killed(int(killed[1]))) from None
        if error is not None:
            raise error
        return item

    def close(self) -> None:
        """Ends the iterator and its workers."""
        if self._stuck:
            for worker in multiprocessing.active_children():  # they may be stopped, and deaf to anything else
                worker.kill()
            return
        self._asked.put(False)
        self._thread.join()
        self._items.close()

    def _serve(self) -> None:
        while self._asked.get():
            try:
                self._answers.put((next(self._items), None))
            except BaseException as error:
                self._answers.put((None, error))

    def _killed(self, number: int) -> str:
        if number == 9 and _out_of_memory_kills() > self._kills_before:
            why = "the system killed it because memory ran out"
        elif number == 9:
            why = "it was killed, as the system does when memory runs out"
        else:
            why = f"signal {number} ended it"
        return (
            f"{self._source}: a worker process that loads data is gone: {why}; continue with --resume, with fewer"
            " --data.num_workers or a smaller --batch_size if memory is short"
        )


def _out_of_memory_kills() -> int:
    try:
        found = re.search(r"^oom_kill (\d+)", _OUT_OF_MEMORY_KILLS.read_text(), re.M)
    except OSError:
        return 0
    return int(found[1]) if found else 0
