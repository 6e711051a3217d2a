"""Loads shard sets through grain: batches of uint8 video and token ids.

Training shuffles all videos, or all captions, again in every epoch (`order`). The frames and the crop of an example
depend only on the seed and its position, so the number of worker processes or hosts changes nothing. Evaluation reads
every video once, in order, with all its captions, and draws nothing at random. Letters: B examples of a process, T
frames, K frames that the shards keep, S text length, C captions.
"""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import ml_dtypes
import numpy as np
from absl import flags
from tokenizers import BertWordPieceTokenizer

from data_pipeline.augment import crop_bicubic, rand_augment
from data_pipeline.config import WAIT_LIMIT, DataConfig
from data_pipeline.errors import DataError
from data_pipeline.order import (
    BAD_RECORDS,
    ENDLESS,
    BadRecordError,
    CaptionOrder,
    Mixture,
    MixturePart,
    batch_shares,
    common_videos,
)
from data_pipeline.processes import start_resource_tracker, start_worker
from data_pipeline.questions import read_questions
from data_pipeline.sampling import nearest_frames, train_frames, wrong_time_order
from data_pipeline.shards import VOCAB_NAME, ShardSource, VideoRecord, open_shards
from data_pipeline.tokenizer import encode, load_tokenizer
from data_pipeline.transforms import centre_crop, random_crop_box, random_flip, random_resized_crop
from data_pipeline.waiting import LimitedIterator

# A batch of 128 clips of 8x224x224 has 154 MB, and by default grain would prepare hundreds of batches ahead.
# One thread: several only wait for each other, as the work is bound by the CPU.
_READ_OPTIONS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
_BUFFERED_OF_A_WORKER = 2  # batches


def _num_held_batches(num_workers: int) -> int:
    makers = max(1, num_workers)
    return 1 + makers * (1 + _READ_OPTIONS.prefetch_buffer_size) + num_workers * _BUFFERED_OF_A_WORKER


_READ_AHEAD = 32  # clips that `eval_clips` reads ahead
_log = logging.getLogger("stgt_jax")
Shapes = dict[str, tuple[tuple[int, ...], np.dtype]]  # of a batch: shape and dtype by name


class TrainLoader:
    """The training batches of one process, without end. Close it when done, or use it as a context manager.

    Its state is the number of batches taken, what they were taken from, and the damaged records left out. It is the
    same in every process but for those, so the state of one restores all.
    """

    def __init__(
        self,
        batches: grain.MapDataset,
        mixture: Mixture,
        config: DataConfig,
        sources: list[ShardSource],
        identity: Mapping[str, Any],
        shapes: Shapes,
    ) -> None:
        self._batches, self._mixture, self._shapes = batches, mixture, shapes
        self._num_workers, self._max_bad_records = config.num_workers, config.max_bad_records
        self._sources = sources
        self._identity = dict(identity)
        self._bad_records: set[int] = set()
        self._next_batch = 0
        self._wait_limit = config.wait_limit
        self._iterator = self._start(0)

    def __iter__(self) -> "TrainLoader":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._iterator)
        self._next_batch += 1
        self._count_bad_records(batch.pop(BAD_RECORDS))
        if self._num_workers == 0:
            return batch
        # Copied: arrays of a worker process are in shared memory, which leaks if they are alive when the program ends.
        return {name: np.array(values) for name, values in batch.items()}

    @property
    def num_bad_records(self) -> int:
        """The damaged records that were left out so far, each counted once."""
        return len(self._bad_records)

    @property
    def num_held_batches(self) -> int:
        """The batches in memory at a time: one in use, those being made, and those that wait."""
        return _num_held_batches(self._num_workers)

    @property
    def fewest_held_batches(self) -> int:
        """The same with `data.num_workers` 0."""
        return _num_held_batches(0)

    def batch_shapes(self) -> Shapes:
        """Returns the shape and the dtype of every array of a batch."""
        return self._shapes

    def origin(self) -> Callable[[], dict[str, list[int]]]:
        """Returns a function that names the records of the last global batch, those of all processes.

        It returns their numbers, which `stgt data show --records` takes, by the folder of their split.
        """
        number = self._next_batch - 1

        def records() -> dict[str, list[int]]:
            of_folder: dict[str, list[int]] = {}
            for part, record in self._mixture.records(number):
                source = self._sources[part]
                of_folder.setdefault(f"{source.shards}/{source.split}", []).append(int(record))
            return of_folder

        return records

    def get_state(self) -> dict[str, Any]:
        """Returns a dict for JSON. `set_state` continues from it with the same batches."""
        bad = {"bad_records": sorted(self._bad_records)} if self._bad_records else {}
        return {"next_batch": self._next_batch, **bad, **self._identity}

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
        self._bad_records = set(state.get("bad_records", ()))
        self._iterator = self._start(self._next_batch)

    def close(self) -> None:
        """Stops the worker processes; no batch can be taken afterwards."""
        self._iterator.close()

    def __enter__(self) -> "TrainLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, first_batch: int) -> LimitedIterator:
        return LimitedIterator(self._read(first_batch), self._wait_limit, f"'{self._sources[0].shards}'")

    def _read(self, first_batch: int) -> grain.DatasetIterator:
        remaining = self._batches[first_batch:].to_iter_dataset(_READ_OPTIONS)
        if self._num_workers == 0:
            return iter(remaining)
        if not flags.FLAGS.is_parsed():  # grain's workers read absl flags, which only absl's own app.run parses
            flags.FLAGS(["stgt"])
        start_resource_tracker()
        workers = grain.MultiprocessingOptions(self._num_workers, per_worker_buffer_size=_BUFFERED_OF_A_WORKER)
        return iter(remaining.mp_prefetch(workers, worker_init_fn=start_worker))

    def _count_bad_records(self, found: np.ndarray) -> None:
        """Counts and names the damaged records of a batch, int64 [B, n]. Raises DataError for too many."""
        for code in sorted({*found[found >= 0].tolist()} - self._bad_records):
            self._bad_records.add(code)
            part, index = divmod(code, ENDLESS)
            place, num_bad = self._sources[part].place(index), len(self._bad_records)
            if num_bad > self._max_bad_records:
                raise DataError(
                    f"{place} is damaged, the {num_bad}. such record; rebuild the split, or allow more with"
                    f" --data.max_bad_records (now {self._max_bad_records})"
                )
            _log.warning("%s is damaged and left out (%d of at most %d)", place, num_bad, self._max_bad_records)


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
    answers: Sequence[str] = (),
) -> TrainLoader:
    """Returns endless shuffled, augmented batches of `batch_size` clips for this process.

    In an epoch of one shard set, all processes together read every video once, or every caption once. What does not
    fill a last global batch is left out of that epoch; each epoch leaves out others, as the order is new. No batch
    holds a video twice. A mixture takes the same number of examples of a shard set in every batch, and an epoch of each
    ends by itself. Process p returns rows p B to (p + 1) B of each global batch, the same rows that a single process
    would have there.

    Args:
      config: the loader's options.
      split: name of the split.
      batch_size: B, clips of this process.
      seed: of the order, the frames and the crops.
      num_frames: T.
      image_size: H = W, pixels.
      process_index: p.
      process_count: number of processes.
      answers: of which the batches name the right one, where they hold questions.

    Returns:
      Batches of `video` uint8 [B, T, H, W, 3], `input_ids` int32 [B, S], `attention_mask` int32 [B, S]. From shards of
      tokens `video` is bfloat16 [B, T, L, D]; nothing is cropped or augmented then. With questions also `answer` int32
      [B], the place in `answers`, or -1.

    Raises:
      DataError: no such shards, more frames than they keep, frames of another shape, or fewer videos than a batch takes
        of a shard set.
    """
    if seed < 0:
        raise DataError(f"seed={seed} must not be negative")
    sources = [_open(config, shards, split, num_frames, image_size) for shards in config.shard_sets]
    if len({source.settings.tokens for source in sources}) > 1:
        raise DataError("data.mix_shards: shard sets of frames and of tokens, or of other tokens, cannot be mixed")
    global_batch = batch_size * process_count
    shares = batch_shares(global_batch, config.mix_weights or [len(source) for source in sources])
    indices = [source.index() for source in sources]
    videos = common_videos([index["video_key"] for index in indices])
    of_all = np.concatenate(videos)
    if num_common := len(np.unique(of_all[of_all >= 0])):  # negative: in one set only
        _log.info("%d videos are in more than one of the shard sets; no batch takes one twice", num_common)
    parts = []
    for at, (source, share) in enumerate(zip(sources, shares, strict=True)):
        if not 0 < share <= len(source):
            raise DataError(
                f"batch_size={share} must be 1 to {len(source)}, the number of videos in split '{split}' of"
                f" data.shards='{source.shards}'; give a smaller --batch_size, or build shards of more videos"
            )
        # The seeds of grain's epochs follow each other, so those of another shard set are far away.
        set_seed = (seed + 0x9E3779B1 * at) % (1 << 32)
        counts = read_questions(source).counts if config.epoch == "questions" else indices[at]["num_captions"]
        text = _TextChoice(config, source, {answer: number for number, answer in enumerate(answers)})
        examples, record = _examples(config, source, counts, share, set_seed, num_frames, image_size, text)
        parts.append(MixturePart(examples, record, videos[at], share))
    # Batches are assigned to processes after the shuffle and the crops: the global batch i has the same clips, in the
    # same order and with the same crops, for any number of processes.
    mixture = Mixture(parts, skips_bad=config.max_bad_records > 0)
    batches = grain.MapDataset.source(mixture).batch(batch_size)[process_index::process_count]
    num_examples = [num_epoch_examples(config, source) for source in sources]
    identity = {"split": split, "num_examples": num_examples[0], "global_batch_size": global_batch, "seed": seed}
    if len(sources) > 1:
        identity |= {"mix_num_examples": num_examples[1:], "mix_shares": shares}
    shapes = _batch_shapes(config, sources[0], batch_size, num_frames, image_size)
    return TrainLoader(batches, mixture, config, sources, identity, shapes)


def _batch_shapes(config: DataConfig, source: ShardSource, batch_size: int, num_frames: int, image_size: int) -> Shapes:
    settings = source.settings
    shape: tuple[int, ...] = (image_size, image_size, 3)
    dtype = np.dtype(np.uint8)
    if settings.tokens:
        shape, dtype = (settings.tokens.tokens_per_frame, settings.tokens.width), np.dtype(ml_dtypes.bfloat16)
    asks = config.epoch == "questions"
    length = config.question_length if asks else settings.max_text_length
    text = (batch_size, length), np.dtype(np.int32)
    shapes: Shapes = {"video": ((batch_size, num_frames, *shape), dtype), "input_ids": text, "attention_mask": text}
    return shapes | ({"answer": ((batch_size,), np.dtype(np.int32))} if asks else {})


def num_epoch_examples(config: DataConfig, source: ShardSource) -> int:
    """Returns the examples of an epoch: videos, captions or questions."""
    number = {"videos": len(source), "captions": source.num_captions, "questions": source.manifest["num_questions"]}
    return number[config.epoch]


def eval_batches(
    config: DataConfig,
    split: str,
    batch_size: int,
    *,
    num_frames: int,
    image_size: int,
    shuffle_frames_seed: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields every video of the split once, in order, with all its captions: uniform frames, centre crop.

    Args:
      config: the loader's options; those for training have no effect here.
      split: name of the split.
      batch_size: B; a last batch that is not full repeats the last clip.
      num_frames: T.
      image_size: H = W, pixels.
      shuffle_frames_seed: if given, the T frames of each clip are shuffled with this seed, neither into their own order
        nor exactly reversed. This control shows whether a model uses the order of frames.

    Yields:
      Batches of `video` uint8 [B, T, H, W, 3] (tokens: bfloat16 [B, T, L, D]), `valid` bool [B] (False on the repeated
      clips), the object arrays [B] of str `video_id` and `group`, and the captions of the valid clips: `caption` object
      [C] of str, `input_ids` and `attention_mask` int32 [C, S], and `row` int64 [C], the clip that each belongs to; and
      their questions: `question` and `answer` object [N] of str, and `question_row` int64 [N].

    Raises:
      DataError: no such shards, more frames than they keep, frames of another shape, or a batch size below 1.
    """
    if batch_size < 1:
        raise DataError(f"evaluation batch size {batch_size} must be at least 1")
    source = _open(config, config.shards, split, num_frames, image_size)
    clip = functools.partial(_eval_clip, source, num_frames, image_size, shuffle_frames_seed)
    read = functools.partial(_read_in_threads, source, clip, range(len(source)), 2 * batch_size, config.wait_limit)
    return _padded_batches(read, len(source), batch_size)


def example_clips(
    config: DataConfig,
    split: str,
    count: int,
    seed: int,
    *,
    records: Sequence[int] | None = None,
    num_frames: int,
    image_size: int,
) -> Iterator[tuple[VideoRecord, dict[str, np.ndarray], np.ndarray]]:
    """Yields records to be looked at, random or given ones: (record, what training makes of it, frames of evaluation).

    Args:
      config: the loader's options.
      split: name of the split.
      count: records; of fewer, all.
      seed: of the choice and the augmentation.
      records: the numbers of those to yield, instead of random ones.
      num_frames: T.
      image_size: H = W, pixels.

    Yields:
      The record; its training example, `video` uint8 [T, H, W, 3], `input_ids` and `attention_mask` int32 [S]; and the
      frames that evaluation takes, uint8 [T, H, W, 3].

    Raises:
      DataError: as `train_loader`.
    """
    source = _open(config, config.shards, split, num_frames, image_size)
    rng = np.random.default_rng(seed)
    if records is None:
        records = np.sort(rng.choice(len(source), min(count, len(source)), replace=False)).tolist()
    if beyond := [index for index in records if not 0 <= index < len(source)]:
        raise DataError(
            f"record {beyond[0]} is not in '{source.shards}', split '{split}': it has 0 to {len(source) - 1}"
        )
    for index in records:
        record = source[index]
        text = _TextChoice(config, source, {})
        example = _train_clip(config, source, num_frames, image_size, text, (index, record), rng)
        yield record, example, _eval_clip(source, num_frames, image_size, None, (index, record))["video"]


def eval_clips(
    source: ShardSource, records: range, *, num_frames: int, image_size: int
) -> Iterator[tuple[VideoRecord, np.ndarray]]:
    """Yields records with their frames as evaluation takes them, uint8 [T, H, W, 3].

    Raises:
      DataError: a record is damaged.
    """
    clip = functools.partial(_eval_clip, source, num_frames, image_size, None)
    clips_read = _read_in_threads(source, clip, records, _READ_AHEAD, WAIT_LIMIT)
    try:
        for made in clips_read:
            yield made["record"], made["video"]
    finally:
        clips_read.close()


def num_videos(config: DataConfig, split: str) -> int:
    """Returns the number of videos in a split of the shard set."""
    return len(_open_split(config.shards, split))


def _open_split(shards: str, split: str) -> ShardSource:
    if not shards:
        raise DataError("data.shards is empty; name a shard set folder, as written by `stgt data build`")
    return open_shards(shards, split)


def _open(config: DataConfig, shards: str, split: str, num_frames: int, image_size: int) -> ShardSource:
    for name, value in (("num_frames", num_frames), ("image_size", image_size)):
        if value < 1:
            raise DataError(f"{name}={value} must be at least 1")
    source = _open_split(shards, split)
    num_kept = source.settings.num_kept_frames
    if num_frames > num_kept:
        raise DataError(
            f"num_frames={num_frames} is more than the {num_kept} frames that data.shards='{shards}' keeps of a"
            f" clip; use {num_kept} or fewer, or rebuild the shards with --num-kept-frames {num_frames}"
        )
    shape = source.settings.frame_shape
    if shape != config.frame_shape:
        raise DataError(
            f"data.frame_shape={config.frame_shape}, but the frames of data.shards='{shards}' were built with"
            f" --frame-shape {shape}; give --data.frame_shape {shape}, or rebuild the shards"
        )
    cleaning = source.settings.clean_text
    if cleaning != config.clean_text:
        raise DataError(
            f"data.clean_text={config.clean_text}, but the texts of data.shards='{shards}' were built with --clean-text"
            f" {cleaning}; give --data.clean_text {cleaning}, or rebuild the shards"
        )
    if source.settings.tokens:
        _check_tokens(source, image_size)
    elif shape == "stretch" and source.settings.resize != image_size:
        raise DataError(
            f"the frames of data.shards='{shards}' were stretched to {source.settings.resize} pixels, and the model"
            f" takes {image_size}; rebuild them with --resize {image_size}"
        )
    return source


def _check_tokens(source: ShardSource, image_size: int) -> None:
    assert source.settings.tokens
    size = source.settings.tokens.image_size
    if size != image_size:
        raise DataError(
            f"'{source.shards}' holds tokens of frames of {size} pixels, and the model takes {image_size}; make them"
            " again with `stgt data cache-tokens`"
        )


class _Numbered:
    """The records of a split with their numbers."""

    def __init__(self, source: ShardSource) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[int, VideoRecord]:
        try:
            return index, self._source[index]
        except DataError as error:
            raise BadRecordError(str(error), index) from error


class _CaptionSource:
    """The captions of a split in the order of training: by position, the number, record and caption."""

    def __init__(self, source: ShardSource, order: CaptionOrder) -> None:
        self._records, self._order = _Numbered(source), order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, position: int) -> tuple[int, VideoRecord, int]:
        video, caption = self._order[position]
        return *self._records[video], caption


def _examples(
    config: DataConfig,
    source: ShardSource,
    text_counts: np.ndarray,
    share: int,
    seed: int,
    num_frames: int,
    image_size: int,
    text: "_TextChoice",
) -> tuple[grain.MapDataset, Callable[[int], int]]:
    """Returns the training examples of one shard set by position, without end, and the record at a position.

    A batch takes `share` examples in a row.
    """
    clip = functools.partial(_train_clip, config, source, num_frames, image_size, text)
    if config.epoch != "videos":
        order, num_texts = CaptionOrder(text_counts, share, seed), int(text_counts.sum())
        if left_out := num_texts - order.epoch_length():
            _log.info(
                "'%s': of %d %s, %d fill no batch of %d different videos in the first epoch",
                source.shards, num_texts, config.epoch, left_out, share,
            )  # fmt: skip
        return grain.MapDataset.source(_CaptionSource(source, order)).seed(seed).random_map(clip), order.video
    per_epoch = len(source) // share * share
    # The same steps without reading: grain's order depends on the seed and the length alone.
    records = grain.MapDataset.range(len(source)).seed(seed).shuffle()[:per_epoch].repeat()
    examples = grain.MapDataset.source(_Numbered(source)).seed(seed).shuffle().random_map(clip)[:per_epoch].repeat()
    return examples, records.__getitem__


@dataclasses.dataclass(frozen=True)
class _TextChoice:
    """Chooses the text that goes with a training clip."""

    config: DataConfig
    source: ShardSource
    answers: Mapping[str, int]  # the number of each answer

    def choose(
        self, index: int, record: VideoRecord, number: int | None, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Returns the token ids and the mask, [S], of a caption; or of a question, and which answer is right.

        Args:
          index: of the record.
          record: of the video.
          number: of its caption or question; a random one by default.
          rng: for the random one.
        """
        asks = self.config.epoch == "questions"
        count = len(record.questions if asks else record.captions)
        if not count:
            what = "question" if asks else "caption"
            raise BadRecordError(
                f"{self.source.place(index)} has no {what}; rebuild the split from rows with {what}s", index
            )
        # Nothing is drawn for the only text, and so a clip of one caption looks the same in every kind of epoch.
        number = number if number is not None else int(rng.integers(count)) if count > 1 else 0
        if not asks:
            return {name: getattr(record, name)[number] for name in ("input_ids", "attention_mask")}
        tokenizer = _tokenizer_of(str(self.source.shards / VOCAB_NAME))
        ids, mask = encode(tokenizer, [record.questions[number]], self.config.question_length)
        right = np.int32(self.answers.get(record.answers[number], -1))
        return {"input_ids": ids[0], "attention_mask": mask[0], "answer": right}


@functools.lru_cache(8)
def _tokenizer_of(vocab: str) -> BertWordPieceTokenizer:
    return load_tokenizer(vocab)


def _train_clip(
    config: DataConfig,
    source: ShardSource,
    num_frames: int,
    image_size: int,
    text: _TextChoice,
    example: tuple[Any, ...],
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Returns the frames and the token ids of `example`: number, record and, maybe, which caption or question."""
    index, record, *chosen = example
    num_available = min(record.num_frames, len(record.frames))
    frames = train_frames(rng, config.train_frame_sampling, num_available, num_frames)
    video, is_pixels = _decoded(source, index, record, frames), source.settings.tokens is None
    if is_pixels:
        video = _cropped(config, rng, video, image_size)
    chosen_text = text.choose(index, record, chosen[0] if chosen else None, rng)
    if config.rand_augment and is_pixels:
        video = rand_augment(rng, video)
    return {"video": video, **chosen_text}


def _cropped(config: DataConfig, rng: np.random.Generator, video: np.ndarray, image_size: int) -> np.ndarray:
    """Returns the frames, uint8 [T, h, w, 3], cropped and maybe mirrored."""
    if config.crop_filter == "antialiased" or config.crop_scale == (1.0, 1.0):
        video = random_resized_crop(rng, video, image_size, config.crop_scale)
    else:
        height, width = video.shape[1:3]
        video = crop_bicubic(video, random_crop_box(rng, height, width, config.crop_scale), image_size)
    return random_flip(rng, video) if config.flip else video


def _eval_clip(
    source: ShardSource, num_frames: int, image_size: int, shuffle_seed: int | None, example: tuple[int, VideoRecord]
) -> dict[str, Any]:
    index, record = example
    frames = nearest_frames(record.frame_numbers, record.num_frames, num_frames)
    if shuffle_seed is not None:
        frames = frames[wrong_time_order(np.random.default_rng((shuffle_seed, index)), num_frames)]
    video = _decoded(source, index, record, frames)
    return {"video": video if source.settings.tokens else centre_crop(video, image_size), "record": record}


def _decoded(source: ShardSource, index: int, record: VideoRecord, frames: np.ndarray) -> np.ndarray:
    """Returns the frames at some positions, uint8 [T, h, w, 3], or the tokens of them, bfloat16 [T, L, D]."""
    try:
        return record.frames[frames]
    except ValueError as error:
        raise BadRecordError(f"{source.place(index)}: {error}; rebuild the split", index) from error


def _read_in_threads(
    source: ShardSource, clip: Callable[[tuple[int, VideoRecord]], Any], records: range, num_ahead: int, limit: int
) -> LimitedIterator:
    """Returns what `clip` makes of the records, in their order."""
    # Threads suffice: Pillow, OpenCV and ArrayRecord release the interpreter lock, and starting worker processes would
    # take longer than the few batches of an evaluation.
    num_threads = min(8, os.cpu_count() or 1)
    clips = grain.MapDataset.source(_Numbered(source))[records.start : records.stop].map(clip)
    read = iter(clips.to_iter_dataset(grain.ReadOptions(num_threads, max(num_threads, num_ahead))))
    return LimitedIterator(read, limit, f"'{source.shards}'")


def _padded_batches(
    read: Callable[[], LimitedIterator], num_clips: int, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    clips = read()
    try:
        for start in range(0, num_clips, batch_size):
            batch = [next(clips) for _ in range(min(batch_size, num_clips - start))]
            padding = batch_size - len(batch)
            records: list[VideoRecord] = [clip["record"] for clip in batch]
            padded = batch + [batch[-1]] * padding
            yield {
                "video": np.stack([clip["video"] for clip in padded]),
                "valid": np.arange(batch_size) < batch_size - padding,
                "video_id": np.array([clip["record"].video_id for clip in padded], object),
                "group": np.array([clip["record"].group for clip in padded], object),
                "caption": np.array([caption for record in records for caption in record.captions], object),
                "input_ids": np.concatenate([record.input_ids for record in records]),
                "attention_mask": np.concatenate([record.attention_mask for record in records]),
                "row": np.repeat(np.arange(len(records)), [len(record.captions) for record in records]),
                "question": np.array([question for record in records for question in record.questions], object),
                "answer": np.array([answer for record in records for answer in record.answers], object),
                "question_row": np.repeat(np.arange(len(records)), [len(record.questions) for record in records]),
            }
    finally:
        clips.close()
