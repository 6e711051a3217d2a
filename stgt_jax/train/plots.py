"""The curves of a run in TensorBoard's format."""

import math
import os
import time
from collections.abc import Mapping

from etils import epath
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from stgt_jax.checks import in_bucket
from stgt_jax.storage import in_time

_FLUSH_SECONDS = 60.0  # curves on a screen are at most this old


class Plots:
    """An event file whose writes the calling thread waits for, so that a disk that is full raises OSError here.

    tensorboardX's SummaryWriter writes in a thread of its own. Where a write fails, that thread ends in silence, and
    the next values wait for it without end.
    """

    def __init__(self, folder: epath.Path, start: int) -> None:
        """Continues after step `start`; TensorBoard then hides what was plotted of later steps."""
        if not in_bucket(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._flushes_alone = not in_bucket(folder)  # in a bucket a flush writes the whole file again
        self._flushed = -math.inf
        self._path = os.path.join(folder, "events")
        self._file = EventsWriter(self._path, f".{os.getpid()}")
        self._write(start + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to each curve; values that are not finite have no place on one."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        for name, value in finite.items():
            self._write(step, summary=summary.scalar(name, value))
        if self._flushes_alone and time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes out every point added so far."""
        in_time(self._file.flush, self._path)
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the file."""
        in_time(self._file.close, self._path)

    def _write(self, step: int, **content: object) -> None:
        self._file.write_event(Event(step=step, wall_time=time.time(), **content))
