"""Writes the embedded data sets: h264 clips of coloured shapes, with captions and questions."""

import csv
import functools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from tqdm import tqdm

from data_pipeline.errors import DataError
from data_pipeline.moving_shapes.render import render
from data_pipeline.moving_shapes.scenes import sample_scenes
from data_pipeline.storage import local_path

FPS = 12
# Without "cpu-independent", x264's fast paths gave one clip in six other bits from run to run.
_X264_OPTIONS = {"crf": "18", "preset": "veryfast", "x264-params": "cpu-independent=1"}
_MIN_IMAGE_SIZE, _MIN_NUM_FRAMES = 32, 8
_CLIPS_PER_WORKER = 64  # with fewer, a new process costs more time than it saves

_Map = Callable[..., Iterable[str]]


def make_moving_shapes(
    out: str | Path,
    *,
    num_train: int,
    num_test: int,
    seed: int = 0,
    image_size: int = 96,
    num_frames: int = 24,
    progress: bool = True,
) -> dict[str, int]:
    """Writes OUT/train and OUT/test: clips 000000.mp4, ..., captions.csv and questions.csv.

    The columns are video, caption, group and video, question, answer. Clips of one group differ only in the order of
    events; the group is empty if reversing the clip changes nothing. These files are written after the last clip: if
    they exist, so do their clips. Several processes make large sets, so a script must call this under
    `if __name__ == "__main__":`.

    Returns:
      The number of clips written: {"train": ..., "test": ...}.

    Raises:
      DataError: sizes that cannot work, more test captions than there are, or `out` is not a folder.
    """
    check_size(image_size, num_frames)
    train, test = sample_scenes(seed, num_train, num_test, image_size=image_size, num_frames=num_frames)
    out = local_path(out)
    write_splits({"train": train, "test": test}, render, out, progress=progress)
    return {"train": len(train), "test": len(test)}


def check_size(image_size: int, num_frames: int) -> None:
    """Raises DataError for clips that cannot be encoded or that show too little."""
    if image_size < _MIN_IMAGE_SIZE or image_size % 2:
        raise DataError(f"image_size={image_size} must be even (h264 in yuv420p) and at least {_MIN_IMAGE_SIZE}")
    if num_frames < _MIN_NUM_FRAMES:
        raise DataError(f"num_frames={num_frames} must be at least {_MIN_NUM_FRAMES}, for events to be seen")


class Told(Protocol):
    """A scene that can be told in words."""

    @property
    def caption(self) -> str:
        """What happens in it."""

    @property
    def group(self) -> str:
        """The id of the scenes that are nearly alike; empty for none."""

    @property
    def questions(self) -> tuple[tuple[str, str], ...]:
        """Pairs of a question and its answer."""


def write_splits(
    splits: Mapping[str, Sequence[Told]], draw: Callable[[Any], np.ndarray], out: Path, *, progress: bool
) -> None:
    """Writes each split to OUT/SPLIT: clips 000000.mp4, ..., captions.csv and questions.csv.

    Args:
      splits: scenes by split.
      draw: a scene -> frames, uint8 [F, H, W, 3]; a function that other processes can import.
      out: the folder.
      progress: whether to show a bar.

    Raises:
      DataError: `out` is not a folder that can be written to.
    """
    with _mapper(sum(map(len, splits.values()))) as mapper:
        for split, scenes in splits.items():
            _write_split(scenes, functools.partial(_write_clip, draw), out / split, mapper, progress)


def write_mp4(frames: np.ndarray, path: str | Path, fps: int = FPS) -> None:
    """Encodes frames, uint8 [F, H, W, 3] RGB with even H and W, as h264. Equal frames give equal files."""
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise DataError(f"{path}: frames of {width}x{height} cannot be yuv420p; both sides must be even")
    with av.open(f"file:{path}", "w") as container:
        stream = container.add_stream("libx264", rate=fps, options=_X264_OPTIONS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1  # else the bits depend on the number of cores
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@contextmanager
def _mapper(num_clips: int) -> Iterator[_Map]:
    """Yields a lazy ordered `map`: over processes if there are enough clips, else the built-in one."""
    num_workers = min(os.cpu_count() or 1, num_clips // _CLIPS_PER_WORKER)
    if num_workers < 2:
        yield map
        return
    # Spawned, not forked: the caller may run JAX, whose threads do not survive a fork.
    with ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield functools.partial(pool.map, chunksize=8)


def _write_clip(draw: Callable[[Any], np.ndarray], scene: Any, path: Path) -> str:
    write_mp4(draw(scene), path)
    return path.name


def _write_split(
    scenes: Sequence[Told], write: Callable[[Any, Path], str], folder: Path, mapper: _Map, progress: bool
) -> None:
    captions, questions = folder / "captions.csv", folder / "questions.csv"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        captions.unlink(missing_ok=True)
        questions.unlink(missing_ok=True)
        for earlier in folder.glob("[0-9]" * 6 + ".mp4"):  # there may have been more of them
            earlier.unlink()
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error
    paths = [folder / f"{i:06d}.mp4" for i in range(len(scenes))]
    names = mapper(write, scenes, paths)
    names = tqdm(names, desc=f"clips of {folder.name}", total=len(scenes), unit="clip", disable=not progress)
    told = list(zip(names, scenes, strict=True))
    asked = [(name, *pair) for name, scene in told for pair in scene.questions]
    _write_rows(questions, ("video", "question", "answer"), asked)
    _write_rows(captions, ("video", "caption", "group"), [(name, s.caption, s.group) for name, s in told])


def _write_rows(path: Path, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
