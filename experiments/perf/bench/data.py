"""`stgt bench data`: clips a second and memory of the training loader, against decoding the videos in the loop.

Every reader gives the same clips: frames by "headtail", stretched, cropped, flipped and augmented by the same
functions. Each runs in a process of its own on one CPU core, in turns, so that a change of the machine's speed meets
all of them.
"""

import contextlib
import dataclasses
import importlib.util
import itertools
import multiprocessing
import os
import re
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from PIL import Image

from data_pipeline.augment import crop_bicubic, rand_augment
from data_pipeline.build import build_shards
from data_pipeline.captions import read_captions
from data_pipeline.config import Encoding
from data_pipeline.loader import train_loader
from data_pipeline.processes import keep_freed_memory
from data_pipeline.sampling import train_frames
from data_pipeline.shards import open_shards
from data_pipeline.transforms import random_crop_box, random_flip
from experiments.perf.bench.loader_memory import format_memory, memory_over_records
from experiments.perf.bench.settings import DataSettings
from experiments.recipes import get_recipe
from stgt_jax.errors import STGTError
from stgt_jax.train.performance import StepTimer

NUM_KEPT_FRAMES = 24
SECONDS, FRAME_RATE, HEIGHT, WIDTH = 15, 30, 336, 596  # of the videos that are made
NUM_MADE, NUM_NAMES = 4, 64  # videos that are made; names under which they stand in the caption file
NUM_FIRST_STEPS = 3  # simulated steps that do not count, as the workers start
DATA = dataclasses.replace(get_recipe("paper_stage1").data, num_workers=0)
OURS: dict[str, Encoding] = {"shards, JPEG": "jpeg", "shards, raw": "raw"}  # name -> encoding
PEERS = ("PyAV and swscale", "PyAV and Pillow", "PyTorch DataLoader")


def bench_data(settings: DataSettings) -> dict[str, Any]:
    """Measures all readers; returns clips a second, memory and bytes of each, and the ratio to the fastest peer.

    Raises:
      STGTError: the caption file cannot be read or names no usable video.
    """
    names = [*OURS, *PEERS]
    if importlib.util.find_spec("torch") is None:
        names.remove("PyTorch DataLoader")
    with tempfile.TemporaryDirectory() as folder:
        captions = Path(settings.captions) if settings.captions else _make_videos(Path(folder))
        videos = [captions.parent / row.video for row in read_captions(captions)]
        for encoding in OURS.values():
            build_shards(
                captions, Path(folder, encoding), split="train", num_kept_frames=NUM_KEPT_FRAMES,
                resize=settings.image_size, frame_shape="stretch", encoding=encoding, max_text_length=32,
                clean_text="lavis",
            )  # fmt: skip
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _, name in itertools.product(range(settings.repeats), names):
            runs[name].append(_in_a_process(name, settings, Path(folder), videos))
        wait = _input_wait(settings, Path(folder))
        sizes = {name: _record_bytes(Path(folder, encoding)) for name, encoding in OURS.items()}
        file_bytes = statistics.mean(os.path.getsize(video) for video in videos if video.exists())
    rows = {
        name: {
            "clips_per_second": statistics.median(run["clips_per_second"] for run in of_reader),
            "megabytes": max(run["megabytes"] for run in of_reader),
            "bytes_per_clip": sizes.get(name, file_bytes),
        }
        for name, of_reader in runs.items()
    }
    fastest_peer = max((name for name in names if name in PEERS), key=lambda name: rows[name]["clips_per_second"])
    for row in rows.values():
        row["times_fastest_peer"] = row["clips_per_second"] / rows[fastest_peer]["clips_per_second"]
    return {
        "readers": rows,
        "fastest_peer": fastest_peer,
        "input_wait": wait,
        "memory": memory_over_records(settings.memory_records, settings.num_workers) if settings.memory_records else [],
        "settings": dataclasses.asdict(settings),
    }


def format_figures(figures: dict[str, Any]) -> str:
    """Returns the table to print."""
    lines = [f"{'one CPU core':<20}{'clips/s':>9}{'of fastest peer':>17}{'memory':>10}{'a clip':>10}"]
    for name, row in figures["readers"].items():
        lines.append(
            f"{name:<20}{row['clips_per_second']:>9.1f}{row['times_fastest_peer']:>15.1f} x{row['megabytes']:>7.0f} MB"
            f"{row['bytes_per_clip'] / 1e6:>7.2f} MB"
        )
    if "PyTorch DataLoader" not in figures["readers"]:
        lines.append("PyTorch is not installed, so its DataLoader is not compared; pip install torch adds it")
    used = figures["settings"]
    step = f"a step of {used['step_milliseconds']:g} ms with {used['step_batch_size']} clips"
    share = 100 * figures["input_wait"]
    lines.append(f"{step} and {used['num_workers']} worker processes waits for data {share:.1f} % of its time")
    if figures["memory"]:
        lines.append(format_memory(figures["memory"]))
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class _SimulatedStep:
    """Stands for the arrays of a train step that the devices complete at a given time."""

    done_at: float  # seconds of the monotonic clock

    def block_until_ready(self) -> None:
        time.sleep(max(0.0, self.done_at - time.monotonic()))


def _input_wait(settings: DataSettings, folder: Path) -> float:
    """Returns the share of the time that a train step of a given length waits for its batch from JPEG shards.

    As in training, the loop takes a batch while the devices compute the step before, and runs ahead of them by one.
    """
    config = dataclasses.replace(DATA, shards=str(folder / "jpeg"), num_workers=settings.num_workers)
    seconds = settings.step_milliseconds / 1000
    num_steps = max(5, round(settings.repeats * settings.seconds / seconds))
    running = _SimulatedStep(0.0)
    frames, size = settings.num_frames, settings.image_size
    loader = train_loader(config, "train", settings.step_batch_size, 0, num_frames=frames, image_size=size)
    with loader as batches, StepTimer() as timer:
        for number in range(NUM_FIRST_STEPS + num_steps):
            with timer.waiting_for_input():
                next(batches)
            step = _SimulatedStep(max(running.done_at, time.monotonic()) + seconds)
            timer.step_started(step)
            if number:
                running.block_until_ready()
                timer.step_completed()
            if number == NUM_FIRST_STEPS:
                timer.take_window()
            running = step
    window = timer.take_window()
    return window.input_seconds / window.seconds


def _make_videos(folder: Path) -> Path:
    """Makes videos of a moving camera and a moving object, and a caption file that names each several times."""
    for seed in range(NUM_MADE):
        rng = np.random.default_rng(seed)
        small = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
        scene = np.asarray(small.resize((1400, 900), Image.Resampling.BICUBIC)).astype(np.int16)
        pixels = np.clip(scene + rng.normal(0, 6, (900, 1400, 1)), 0, 255).astype(np.uint8)
        with av.open(str(folder / f"made{seed}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=FRAME_RATE, options={"preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for index in range(SECONDS * FRAME_RATE):
                y, x = 200 + int(150 * np.sin(index / 60)), 300 + int(250 * np.cos(index / 80))
                image = pixels[y : y + HEIGHT, x : x + WIDTH].copy()
                left = 3 * index % (WIDTH - 80)
                image[100:180, left : left + 80] = (200, 40, 3 * index % 256)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, FRAME_RATE)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    rows = []
    for number in range(NUM_NAMES):
        name = folder / f"video{number}.mp4"
        name.symlink_to(f"made{number % NUM_MADE}.mp4")
        rows.append(f"{name.name},a square moves to the right\n")
    captions = folder / "captions.csv"
    captions.write_text("video,caption\n" + "".join(rows))
    return captions


def _record_bytes(shards: Path) -> float:
    files = list((shards / "train").glob("*.array_record*"))
    return sum(file.stat().st_size for file in files) / len(open_shards(shards, "train"))


def _in_a_process(name: str, settings: DataSettings, folder: Path, videos: list[Path]) -> dict[str, float]:
    """Measures a reader in a new process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(name, settings, folder, videos, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise STGTError(f"bench data: the process that measures '{name}' failed; see its message above") from None
    finally:
        process.join()


def _measure(name: str, settings: DataSettings, folder: Path, videos: list[Path], sender: Any) -> None:
    """Sends clips a second, and the memory that the reader adds to that of its imports.

    The first batch starts the reader and does not count for the speed.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    keep_freed_memory()  # as the workers of the training loader do
    before = _peak_megabytes()
    with _reader(name, settings, folder, videos) as batches:
        next(batches)
        start, num_clips = time.perf_counter(), 0
        while num_clips < settings.batch_size or time.perf_counter() - start < settings.seconds:
            num_clips += len(next(batches)["video"])
        seconds = time.perf_counter() - start
    sender.send({"clips_per_second": num_clips / seconds, "megabytes": _peak_megabytes() - before})


def _peak_megabytes() -> float:
    """Returns the peak memory of this process; where /proc does not tell, that of the process it came from counts."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _reader(name: str, settings: DataSettings, folder: Path, videos: list[Path]) -> Any:
    if name in OURS:
        config = dataclasses.replace(DATA, shards=str(folder / OURS[name]))
        frames, size = settings.num_frames, settings.image_size
        return train_loader(config, "train", settings.batch_size, 0, num_frames=frames, image_size=size)
    if name == "PyTorch DataLoader":
        return _torch_loader(settings, videos)
    resize = _swscale if name == "PyAV and swscale" else _pillow
    return contextlib.nullcontext(_decoding_loop(settings, videos, resize))


def _decoding_loop(
    settings: DataSettings, videos: list[Path], resize: Callable[[Any, int], np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    while True:
        chosen = rng.choice(len(videos), settings.batch_size, replace=settings.batch_size > len(videos))
        yield {"video": np.stack([_decoded_clip(settings, videos[index], rng, resize) for index in chosen])}


def _decoded_clip(
    settings: DataSettings, video: Path, rng: np.random.Generator, resize: Callable[[Any, int], np.ndarray]
) -> np.ndarray:
    """Decodes up to the last frame that the clip takes, and augments as the training loader does."""
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        wanted = train_frames(rng, "headtail", stream.frames, settings.num_frames)
        needed = itertools.islice(container.decode(stream), int(wanted[-1]) + 1)
        pictures = {n: resize(frame, settings.image_size) for n, frame in enumerate(needed) if n in wanted}
    clip = np.stack([pictures[number] for number in wanted])
    height, width = clip.shape[1:3]
    clip = crop_bicubic(clip, random_crop_box(rng, height, width, DATA.crop_scale), settings.image_size)
    return np.ascontiguousarray(rand_augment(rng, random_flip(rng, clip)))


def _swscale(frame: Any, size: int) -> np.ndarray:
    return frame.to_ndarray(format="rgb24", width=size, height=size, interpolation="BILINEAR")


def _pillow(frame: Any, size: int) -> np.ndarray:
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _torch_loader(settings: DataSettings, videos: list[Path]) -> Any:
    import torch

    torch.set_num_threads(1)

    class Videos(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(videos)

        def __getitem__(self, index: int) -> dict[str, np.ndarray]:
            rng = np.random.default_rng(index)
            return {"video": _decoded_clip(settings, videos[index], rng, _swscale)}

    loader = torch.utils.data.DataLoader(Videos(), batch_size=settings.batch_size, shuffle=True, drop_last=True)
    return contextlib.nullcontext(itertools.chain.from_iterable(itertools.repeat(loader)))
