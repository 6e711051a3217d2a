"""Memory of the training loader and its workers over an epoch of many small records.

What grows with the records read, such as a cache or a list of Python objects that workers copy, shows here whatever the
size of a record.
"""

import dataclasses
import multiprocessing
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.config import DataConfig
from data_pipeline.loader import train_loader
from data_pipeline.shard_writer import write_split
from data_pipeline.shards import VOCAB_NAME, ShardSettings, VideoRecord, hash_file
from data_pipeline.stored_frames import StoredFrames

BATCH_SIZE, SIDE, TEXT_LENGTH = 100, 8, 4
NUM_SAMPLES = 10  # of the memory, at equal distances


def memory_over_records(num_records: int, num_workers: int) -> list[dict[str, Any]]:
    """Reads a set of `num_records` videos of one small frame once, shuffled.

    Returns:
      Samples, each with the `records` read so far, and resident `megabytes` of the main process and of all workers.
    """
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), num_records)
        config = DataConfig(shards=folder, num_workers=num_workers)
        num_batches, samples = num_records // BATCH_SIZE, []
        with train_loader(config, "train", BATCH_SIZE, 0, num_frames=1, image_size=SIDE) as batches:
            for number in range(1, num_batches + 1):
                next(batches)
                if number * NUM_SAMPLES // num_batches > (number - 1) * NUM_SAMPLES // num_batches:
                    workers = [_megabytes(process.pid) for process in multiprocessing.active_children()]
                    memory = {"main": _megabytes("self"), "workers": sum(workers)}
                    samples.append({"records": number * BATCH_SIZE, "megabytes": memory})
    return samples


def format_memory(samples: list[dict[str, Any]]) -> str:
    """Returns the lines to print."""
    lines = [f"{'records read':>12}{'main process':>15}{'workers':>11}"]
    for sample in samples:
        main, workers = sample["megabytes"].values()
        lines.append(f"{sample['records']:>12,}{main:>12.0f} MB{workers:>8.0f} MB")
    return "\n".join(lines)


def _megabytes(process: int | str | None) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def _write(folder: Path, num_records: int) -> None:
    (folder / VOCAB_NAME).write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nball\n")
    (folder / "train").mkdir()
    vocab_sha256 = hash_file(folder / VOCAB_NAME)
    settings = ShardSettings(1, SIDE, "keep_aspect", "raw", None, TEXT_LENGTH, vocab_sha256)
    write_split(folder / "train", "train", _records(num_records), settings)


def _records(num_records: int) -> Iterator[VideoRecord]:
    record = VideoRecord(
        video_id="",
        video_key=0,
        group="",
        frames=StoredFrames(np.zeros((1, SIDE, SIDE, 3), np.uint8), "raw"),
        frame_numbers=np.zeros(1, np.int32),
        num_frames=1,
        captions=("ball",),
        input_ids=np.array([[2, 5, 3, 0]], np.int32),
        attention_mask=np.array([[1, 1, 1, 0]], np.int32),
    )
    for number in range(num_records):
        yield dataclasses.replace(record, video_id=f"{number}.mp4", video_key=number)
