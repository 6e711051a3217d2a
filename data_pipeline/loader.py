"""Loads a shard set through grain: batches of uint8 video and token ids.

Training shuffles the whole split again in every epoch. The frames and the crop of a clip depend only on the seed, the
epoch and the clip's position in it, so the number of worker processes or hosts changes nothing. Evaluation reads every
clip once, in order, and draws nothing at random. Letters: B clips of a process, T frames, S text length.
"""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import numpy as np
from absl import flags

from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.sampling import train_frames, uniform_frames, wrong_time_order
from data_pipeline.shards import ShardSource, open_shards
from data_pipeline.transforms import centre_crop, random_flip, random_resized_crop

# A batch of 128 clips of 8x224x224 has 154 MB, and by default grain would prepare hundreds of batches ahead.
_READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
_EVAL_TEXT = ("video_id", "caption", "group")


class TrainLoader:
    """The training batches of one process, without end. Close it when done, or use it as a context manager.

    Its state is the number of batches taken, and what they were taken from. It is the same in every process, so the
    state of one restores all.
    """

    def __init__(self, batches: grain.MapDataset, num_workers: int, identity: Mapping[str, Any]) -> None:
        self._batches = batches
        self._num_workers = num_workers
        self._identity = dict(identity)
        self._next_batch = 0
        self._iterator = self._start(0)

    def __iter__(self) -> "TrainLoader":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._iterator)
        self._next_batch += 1
        # Copied: arrays of a worker process are in shared memory, which leaks if they are alive when the program ends.
        return {name: np.array(values) for name, values in batch.items()}

    def get_state(self) -> dict[str, Any]:
        """Returns a dict for JSON. `set_state` continues from it with the same batches."""
        return {"next_batch": self._next_batch, **self._identity}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from the position at which `state` was taken.

        Raises:
          DataError: `state` belongs to other data, another seed or another global batch size.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise DataError(
                    f"loader state: it was saved with {name}={state.get(name)}, this run has {name}={value};"
                    " resume with the same, or start a new run"
                )
        self._iterator.close()
        self._next_batch = int(state["next_batch"])
        self._iterator = self._start(self._next_batch)

    def close(self) -> None:
        """Stops the worker processes; no batch can be taken afterwards."""
        self._iterator.close()

    def __enter__(self) -> "TrainLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, first_batch: int) -> grain.DatasetIterator:
        remaining = self._batches[first_batch:].to_iter_dataset(_READ_OPTIONS)
        if self._num_workers == 0:
            return iter(remaining)
        if not flags.FLAGS.is_parsed():  # grain's workers read absl flags, which only absl's own app.run parses
            flags.FLAGS(["stgt"])
        workers = grain.MultiprocessingOptions(num_workers=self._num_workers, per_worker_buffer_size=2)
        return iter(remaining.mp_prefetch(workers, worker_init_fn=_init_worker))


def train_loader(
    config: DataConfig,
    split: str,
    batch_size: int,
    seed: int,
    *,
    num_frames: int,
    image_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainLoader:
    """Returns endless shuffled, augmented batches of `batch_size` clips for this process.

    In an epoch, all processes together read every clip once. Clips that do not fill a last global batch are left out of
    that epoch; they are others in each epoch, as the order is new. So no batch holds a clip twice. Process p returns
    rows p B to (p + 1) B of each global batch, the same rows that a single process would have there.

    Args:
      config: the loader's options.
      split: name of the split.
      batch_size: B, clips of this process.
      seed: of the order, the frames and the crops.
      num_frames: T.
      image_size: H = W, pixels.
      process_index: p.
      process_count: number of processes.

    Returns:
      Batches of `video` uint8 [B, T, H, W, 3], `input_ids` int32 [B, S], `attention_mask` int32 [B, S].

    Raises:
      DataError: no such shards, more frames than they keep, or fewer clips than one global batch.
    """
    if seed < 0:
        raise DataError(f"seed={seed} must not be negative")
    source = _open(config, split, num_frames, image_size)
    global_batch = batch_size * process_count
    if not 0 < global_batch <= len(source):
        raise DataError(
            f"batch_size={global_batch} must be 1 to {len(source)}, the number of clips in split '{split}' of"
            f" data.shards='{config.shards}'; give a smaller --batch_size, or build shards of more clips"
        )
    # Batches are assigned to processes after the shuffle and the crops: the global batch i has the same clips, in the
    # same order and with the same crops, for any number of processes.
    clips_per_epoch = len(source) // global_batch * global_batch
    clip = functools.partial(_train_clip, config, num_frames, image_size)
    clips = grain.MapDataset.source(source).seed(seed).shuffle().random_map(clip)
    batches = clips[:clips_per_epoch].batch(batch_size)[process_index::process_count].repeat()
    identity = {"split": split, "num_examples": len(source), "global_batch_size": global_batch, "seed": seed}
    return TrainLoader(batches, config.num_workers, identity)


def eval_batches(
    config: DataConfig,
    split: str,
    batch_size: int,
    *,
    num_frames: int,
    image_size: int,
    shuffle_frames_seed: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields every clip of the split once, in order: uniform frames, centre crop.

    Args:
      config: the loader's options; those for training have no effect here.
      split: name of the split.
      batch_size: B; a last batch that is not full repeats the last clip.
      num_frames: T.
      image_size: H = W, pixels.
      shuffle_frames_seed: if given, the T frames of each clip are shuffled with this seed, neither into their own order
        nor exactly reversed. This control shows whether a model uses the order of frames.

    Yields:
      Batches of `video` uint8 [B, T, H, W, 3], `input_ids` and `attention_mask` int32 [B, S], `valid` bool [B] (False
      on the repeated clips), and the object arrays [B] of str `video_id`, `caption` and `group`.

    Raises:
      DataError: no such shards, more frames than they keep, or a batch size below 1.
    """
    if batch_size < 1:
        raise DataError(f"evaluation batch size {batch_size} must be at least 1")
    source = _open(config, split, num_frames, image_size)
    clip = functools.partial(_eval_clip, num_frames, image_size, shuffle_frames_seed)
    return _padded_batches(grain.MapDataset.source(source).map_with_index(clip), batch_size)


def num_examples(config: DataConfig, split: str) -> int:
    """Returns the number of clips in a split of the shard set."""
    return len(_open_split(config, split))


def _init_worker(index: int, count: int) -> None:
    """Makes a worker ignore SIGTERM, and end when its parent process ends.

    A scheduler sends SIGTERM to every process of a job, but the parent still needs batches to finish its step. And if
    the parent is killed, the worker would wait for ever to hand over its next batch.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_after_parent, daemon=True).start()


def _end_after_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _open_split(config: DataConfig, split: str) -> ShardSource:
    if not config.shards:
        raise DataError("data.shards is empty; name a shard set folder, as written by `stgt data build`")
    return open_shards(config.shards, split)


def _open(config: DataConfig, split: str, num_frames: int, image_size: int) -> ShardSource:
    for name, value in (("num_frames", num_frames), ("image_size", image_size)):
        if value < 1:
            raise DataError(f"{name}={value} must be at least 1")
    source = _open_split(config, split)
    num_kept = source.settings.num_kept_frames
    if num_frames > num_kept:
        raise DataError(
            f"num_frames={num_frames} is more than the {num_kept} frames that data.shards='{config.shards}' keeps of a"
            f" clip; use {num_kept} or fewer, or rebuild the shards with --num-kept-frames {num_frames}"
        )
    return source


def _train_clip(
    config: DataConfig, num_frames: int, image_size: int, record: Mapping[str, Any], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    frames = train_frames(rng, config.train_frame_sampling, len(record["video"]), num_frames)
    video = random_resized_crop(rng, record["video"][frames], image_size, config.crop_scale)
    if config.flip:
        video = random_flip(rng, video)
    return {"video": video, **_tokens(record)}


def _eval_clip(
    num_frames: int, image_size: int, shuffle_seed: int | None, index: int, record: Mapping[str, Any]
) -> dict[str, Any]:
    frames = uniform_frames(len(record["video"]), num_frames)
    if shuffle_seed is not None:
        frames = frames[wrong_time_order(np.random.default_rng((shuffle_seed, index)), num_frames)]
    video = centre_crop(record["video"][frames], image_size)
    return {"video": video, **_tokens(record), **{name: record[name] for name in _EVAL_TEXT}}


def _tokens(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(record[name], np.int32) for name in ("input_ids", "attention_mask")}


def _padded_batches(clips: grain.MapDataset, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    # Threads suffice: Pillow and ArrayRecord release the interpreter lock, and starting worker processes would take
    # longer than the few batches of an evaluation.
    num_threads = min(8, os.cpu_count() or 1)
    clips_read = iter(clips.to_iter_dataset(grain.ReadOptions(num_threads, max(num_threads, 2 * batch_size))))
    try:
        for start in range(0, len(clips), batch_size):
            batch = [next(clips_read) for _ in range(min(batch_size, len(clips) - start))]
            padding = batch_size - len(batch)
            batch += [batch[-1]] * padding
            stacked = {
                name: np.array([clip[name] for clip in batch], object if name in _EVAL_TEXT else None)
                for name in batch[0]
            }
            yield {**stacked, "valid": np.arange(batch_size) < batch_size - padding}
    finally:
        clips_read.close()
