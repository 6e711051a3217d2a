"""From a video, a file or an array of frames, to the clip that the model takes, without building shards.

The clip of a file is exactly what `build_shards` and `eval_batches` make of it. Letters: n frames of a video, K frames
that shards keep of it, T of those that the model takes.
"""

import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from data_pipeline.config import FrameShape
from data_pipeline.decode import FrameOptions, decode_clip
from data_pipeline.errors import DataError
from data_pipeline.packets import ClipError
from data_pipeline.picture import resize_short_side, stretch_array
from data_pipeline.processes import ahead
from data_pipeline.sampling import nearest_frames, uniform_frames
from data_pipeline.transforms import centre_crop

_Result = TypeVar("_Result")
Video = str | os.PathLike[str] | np.ndarray  # a file, or its frames: uint8 [n, height, width, 3], RGB


@dataclass(frozen=True)
class ClipReader:
    """Reads videos as the model's training shards were built (K and `resize`) and as evaluation reads them."""

    num_kept_frames: int  # K
    resize: int  # pixels: the short side of the kept frames, or both sides
    frame_shape: FrameShape  # of the kept frames
    num_frames: int  # T
    image_size: int  # side of a frame for the model, pixels

    def read(self, video: Video, index: int = 0) -> np.ndarray:
        """Returns the clip, uint8 [T, image_size, image_size, 3], of one video. Errors name an array by its `index`.

        Raises:
          DataError: a file that is missing, damaged or not a video; an array that is not uint8 [n, height, width, 3].
        """
        if isinstance(video, str | os.PathLike):
            return self._from_file(os.fspath(video))
        if not hasattr(video, "__array__"):
            raise DataError(f"video {index} is of type {type(video).__name__}; give a path or an array of frames")
        return self._from_frames(np.asarray(video), index)

    def read_segment(self, path: str | os.PathLike[str], start: float, end: float) -> np.ndarray:
        """Returns the clip of a part of a video file, from `start` to `end` seconds. Raises what `read` raises."""
        return self._from_file(os.fspath(path), start, end)

    def read_all(self, videos: Iterable[Video]) -> Iterator[np.ndarray]:
        """Yields the clip of each video, in order. Threads read a few videos ahead. Raises what `read` raises."""
        yield from in_threads(lambda numbered: self.read(numbered[1], numbered[0]), enumerate(videos))

    def try_all(self, paths: Iterable[str | os.PathLike[str]]) -> Iterator[np.ndarray | str]:
        """Like `read_all` for files, but in place of a clip that cannot be read it yields the reason."""

        def attempt(path: str | os.PathLike[str]) -> np.ndarray | str:
            try:
                return self.read(path)
            except DataError as error:
                return str(error)

        yield from in_threads(attempt, paths)

    def _from_file(self, path: str, start: float | None = None, end: float | None = None) -> np.ndarray:
        if "://" in path:
            raise DataError(f"video '{path}' is not a local file; download it first")
        try:
            options = FrameOptions(self.num_kept_frames, self.resize, self.frame_shape)
            clip = decode_clip(path, options, start=start, end=end)
        except ClipError as error:
            raise DataError(f"video '{path}': {error}") from error
        chosen = nearest_frames(clip.frame_numbers, clip.num_frames, self.num_frames)
        return centre_crop(clip.frames[chosen], self.image_size)

    def _from_frames(self, frames: np.ndarray, index: int) -> np.ndarray:
        """More than T frames are sampled as those of a file; of fewer, the last one is repeated.

        Frames of image_size x image_size, such as those of `eval_batches`, are not resized.
        """
        _check_frames(frames, index)
        num_frames, height, width, _ = frames.shape
        if num_frames > self.num_frames:
            kept = uniform_frames(num_frames, self.num_kept_frames)
            frames = frames[kept[nearest_frames(kept, num_frames, self.num_frames)]]
        else:
            frames = frames[uniform_frames(num_frames, self.num_frames)]
        if (height, width) == (self.image_size, self.image_size):
            return frames
        if self.frame_shape == "stretch":
            return stretch_array(frames, self.image_size)
        return centre_crop(np.stack([resize_short_side(frame, self.resize) for frame in frames]), self.image_size)


def in_threads(function: Callable[[Any], _Result], items: Iterable[Any]) -> Iterator[_Result]:
    """Like `map`, but threads compute a few results ahead."""
    num_threads = min(8, os.cpu_count() or 1)
    pool = concurrent.futures.ThreadPoolExecutor(num_threads)
    try:
        for future in ahead((pool.submit(function, item) for item in items), 4 * num_threads):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def list_videos(videos: Any) -> Iterable[Video]:
    """Returns the single videos in what a user gave as videos.

    Args:
      videos: a path; an array of the frames of one video [n, height, width, 3] or of several [V, n, height, width, 3];
        or an iterable of paths and of arrays [n, height, width, 3].

    Raises:
      DataError: it is none of these.
    """
    if isinstance(videos, str | os.PathLike):
        return [videos]
    if not hasattr(videos, "__array__"):
        if not isinstance(videos, Iterable):
            raise DataError(f"videos is of type {type(videos).__name__}; give a path, an array of frames, or a list")
        return videos
    array = np.asarray(videos)
    if array.ndim == 1 and array.dtype.kind in "OU":  # a column of paths
        return array.tolist()
    if array.ndim not in (4, 5):
        raise DataError(
            f"videos is an array of shape {array.shape}; the frames of one video are [n, height, width, 3], of several"
            " [videos, n, height, width, 3]"
        )
    return [array] if array.ndim == 4 else list(array)


def _check_frames(frames: np.ndarray, index: int) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3:
        hint = ""
        if frames.ndim == 3:
            hint = "; give one frame as frame[None], and a list of frames as np.stack(frames)"
        elif frames.ndim == 4 and frames.shape[1] == 3:
            hint = "; colours come last: np.moveaxis(frames, 1, -1)"
        raise DataError(f"video {index} has shape {frames.shape}, not [frames, height, width, 3]{hint}")
    if 0 in frames.shape:
        raise DataError(f"video {index} has shape {frames.shape}: it is empty")
    if frames.dtype != np.uint8:
        raise DataError(
            f"video {index} has frames of {frames.dtype}, not uint8 of 0 to 255; convert floats of 0 to 1 by"
            " (255 * frames).round().astype(np.uint8)"
        )
