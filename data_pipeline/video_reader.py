"""Reads the kept frames of videos for a build, in worker processes, and again where storage fails for a moment."""

import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import hashlib
import multiprocessing
import os
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from data_pipeline.build_plan import Video
from data_pipeline.decode import FrameOptions, decode_clip
from data_pipeline.errors import DataError
from data_pipeline.packets import ClipError
from data_pipeline.processes import ahead, call_until_stopped, no_signal_while_starting, start_stoppable_worker
from data_pipeline.storage import read_locally
from data_pipeline.stored_frames import encode_jpeg

PAUSES = (1.0, 4.0, 16.0)  # seconds before a failed read is tried again
_PASSING_ERRORS = {
    errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENETDOWN,
    errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENOTCONN,
}  # fmt: skip
_HASHED_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class KeptFrames:
    """What is kept of a video."""

    video_key: int
    stored: Any  # as in StoredFrames
    frame_numbers: np.ndarray
    num_frames: int
    is_hdr: bool
    is_damaged: bool


@dataclasses.dataclass(frozen=True)
class VideoReader:
    """Reads videos of a folder, which may be in a bucket."""

    folder: Path | epath.Path
    options: FrameOptions
    jpeg_quality: int | None  # None for raw frames

    def read(self, video: Video) -> KeptFrames | str:
        """Returns the frames of a video, or the reason why there are none."""
        for pause in (*PAUSES, None):
            try:
                return self._read_once(video)
            except ClipError as error:
                if pause is None or not _may_pass(error):
                    return str(error)
            time.sleep(pause)
        raise AssertionError("the last try returns")

    def _read_once(self, video: Video) -> KeptFrames:
        with _at_hand(self.folder / video.name) as path:
            clip = decode_clip(path, self.options, start=video.start, end=video.end)
            key = _video_key(path, video.segment)
        stored = clip.frames if self.jpeg_quality is None else encode_jpeg(clip.frames, self.jpeg_quality)
        return KeptFrames(key, stored, clip.frame_numbers, clip.num_frames, clip.is_hdr, clip.damage > 0)


@contextlib.contextmanager
def _at_hand(path: Path | epath.Path) -> Iterator[Path]:
    """Yields the video as a local file. Raises ClipError where storage does not give it."""
    try:
        with read_locally(path) as local:
            yield local
    except FileNotFoundError as error:
        raise ClipError("missing: no such file") from error
    except OSError as error:
        raise ClipError(f"not readable: {error.strerror or error}") from error


def _may_pass(error: ClipError) -> bool:
    """Whether the read failed for a reason that may be gone in a moment."""
    cause = error.__cause__
    return isinstance(cause, OSError) and str(error).startswith("not readable") and cause.errno in _PASSING_ERRORS


def _video_key(path: Path, segment: str) -> int:
    """Returns `VideoRecord.video_key`, from the size and three parts of the file: a film has several GB."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256(f"{size} {segment}".encode())
        for start in (0, max(0, size - _HASHED_BYTES) // 2, max(0, size - _HASHED_BYTES)):
            file.seek(start)
            digest.update(file.read(_HASHED_BYTES))
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def read_videos(
    reader: VideoReader, videos: Iterable[Video], num_workers: int, num_videos: int
) -> Generator[KeptFrames | str]:
    """Yields what `reader` makes of each video, in order. Each worker reads at most a few videos ahead.

    Args:
      reader: reads a video.
      videos: to be read.
      num_workers: processes; 0 reads in this one.
      num_videos: the number of videos, at most.

    Raises:
      DataError: a worker was killed.
    """
    if num_workers == 0:
        yield from map(reader.read, videos)
        return
    # Spawned: a forked child of a process with JAX or decoding threads can hang.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = concurrent.futures.ProcessPoolExecutor(
        max(1, min(num_workers, num_videos)), context, initializer=start_stoppable_worker, initargs=(stop,)
    )
    latest = ""  # the video last submitted or waited for
    call = functools.partial(call_until_stopped, reader.read)

    def submit(video: Video) -> tuple[Video, concurrent.futures.Future[Any]]:
        nonlocal latest
        latest = video.name
        with no_signal_while_starting():  # the first submissions start the workers
            return video, pool.submit(call, video)

    try:
        for video, future in ahead(map(submit, videos), 4 * num_workers):
            latest = video.name
            yield future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise DataError(f"a decoding process died at or near '{latest}': out of memory? try fewer workers") from error
    finally:
        stop.set()  # a long video takes minutes, more than a scheduler waits before it kills what it has asked to stop
        pool.shutdown(cancel_futures=True)
