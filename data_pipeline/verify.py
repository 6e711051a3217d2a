"""Checks a shard set: every file against its checksum, and every record against what it must hold."""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipeline.errors import DataError
from data_pipeline.processes import ahead, start_worker
from data_pipeline.shards import (
    INDEX_NAME,
    VOCAB_NAME,
    ShardSettings,
    ShardSource,
    VideoRecord,
    hash_file,
    hash_record,
    list_splits,
    open_shards,
)
from data_pipeline.tokenizer import encode, load_tokenizer

_RECORDS_AT_A_TIME, _HASH_BYTES = 64, 32


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """What was found in a split."""

    split: str
    num_videos: int
    num_captions: int
    num_questions: int
    problems: tuple[str, ...]  # each names the file or the record
    remarks: tuple[str, ...] = ()  # what is unusual but does no harm


@dataclasses.dataclass
class _Found:
    """What was found in some records in a row."""

    num_captions: int = 0
    num_questions: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)
    remarks: list[str] = dataclasses.field(default_factory=list)
    hashes: bytes = b""  # of the records, _HASH_BYTES each
    id_hashes: list[int] = dataclasses.field(default_factory=list)  # of their video ids


def verify_shards(
    shards: str | Path, *, num_workers: int | None = None, progress: bool = True
) -> tuple[SplitReport, ...]:
    """Reads everything in a shard set, and decodes every frame.

    Args:
      shards: folder of the shard set.
      num_workers: processes; 0 reads in this one. By default one for each CPU core.
      progress: show a progress bar.

    Returns:
      A report for each split.

    Raises:
      DataError: there is no shard set.
    """
    splits = list_splits(shards)
    if not splits:
        raise DataError(f"no shard set in '{shards}': build one with `stgt data build`")
    return tuple(_verify_split(shards, split, num_workers, progress) for split in splits)


def _verify_split(shards: str | Path, split: str, num_workers: int | None, progress: bool) -> SplitReport:
    try:
        source = open_shards(shards, split)
    except DataError as error:  # what would end a training, too: a missing or truncated file, another vocabulary
        return SplitReport(split, 0, 0, 0, (str(error),))
    problems = [
        f"'{path}' does not have the checksum of the build: it was damaged, or is of another build"
        for path, expected in source.file_hashes.items()
        if hash_file(path) != expected
    ]
    problems += [f"'{path}' does not belong to the build of this split: remove it" for path in source.unknown_files()]
    try:
        index = source.index()
    except DataError as error:
        problems.append(str(error))
        index = None
    found, digest = _Found(), _RecordsDigest(source.shard_lengths)
    bar = tqdm(total=len(source), desc=f"verifying {split}", unit=" videos", disable=not progress)
    for part in _check_all(source, index, num_workers):
        digest.update(part.hashes)
        found.num_captions += part.num_captions
        found.num_questions += part.num_questions
        found.problems += part.problems
        found.remarks += part.remarks
        found.id_hashes += part.id_hashes
        bar.update(len(part.id_hashes))
    bar.close()
    problems += found.problems
    problems += _duplicates(source, np.array(found.id_hashes, np.uint64), "is of the same video as")
    if index is not None:
        found.remarks += _duplicates(source, index["video_key"], "is of the same file as")
    if not problems:
        problems += _wrong_totals(source, found, digest.hexdigest())
    return SplitReport(
        split, len(source), found.num_captions, found.num_questions, tuple(problems), tuple(found.remarks)
    )


def _check_all(source: ShardSource, index: np.ndarray | None, num_workers: int | None) -> Iterator[_Found]:
    """Yields what is found in one stretch of records after the other."""
    starts = range(0, len(source), _RECORDS_AT_A_TIME)
    entries = (None if index is None else index[at : at + _RECORDS_AT_A_TIME] for at in starts)
    num_workers = (os.cpu_count() or 1) if num_workers is None else num_workers
    if num_workers == 0 or len(starts) == 1:
        yield from map(_Checker(source).check, starts, entries)
        return
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start_checking, initargs=(source,)
    )
    try:
        for future in ahead(map(pool.submit, itertools.repeat(_check_in_worker), starts, entries), 2 * num_workers):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


class _RecordsDigest:
    """The hash of all records, as the manifest has it: of the hashes of the files, each over those of its records."""

    def __init__(self, shard_lengths: list[int]) -> None:
        self._digests = [hashlib.sha256() for _ in shard_lengths]
        self._ends, self._position = np.cumsum(shard_lengths), 0

    def update(self, hashes: bytes) -> None:
        """Adds the hashes of the next records."""
        for start in range(0, len(hashes), _HASH_BYTES):
            shard = int(np.searchsorted(self._ends, self._position, side="right"))
            self._digests[shard].update(hashes[start : start + _HASH_BYTES])
            self._position += 1

    def hexdigest(self) -> str:
        return hashlib.sha256(b"".join(digest.digest() for digest in self._digests)).hexdigest()


class _Checker:
    """Checks records of a split."""

    def __init__(self, source: ShardSource) -> None:
        self._source, self._tokenizer = source, load_tokenizer(source.shards / VOCAB_NAME)

    def check(self, start: int, entries: np.ndarray | None) -> _Found:
        """Checks the records from `start` on that a worker takes at a time, with their entries in the index."""
        found = _Found()
        for index in range(start, min(start + _RECORDS_AT_A_TIME, len(self._source))):
            try:
                record = self._source[index]
            except DataError as error:
                found.problems.append(str(error))
                found.id_hashes.append(index)  # of no other record
                found.hashes += bytes(_HASH_BYTES)
                continue
            found.num_captions += len(record.captions)
            found.num_questions += len(record.questions)
            found.hashes += hash_record(record)
            found.id_hashes.append(int.from_bytes(hashlib.sha256(record.video_id.encode()).digest()[:8], "little"))
            place = f"{self._source.place(index)} ({record.video_id})"
            found.problems += [f"{place}: {what}" for what in self._problems(record)]
            if entries is not None and entries[index - start].tolist() != (len(record.captions), record.video_key):
                found.problems.append(f"{place}: {INDEX_NAME} says otherwise of its captions or its file")
            if len(set(record.captions)) < len(record.captions):
                found.remarks.append(f"{place}: a caption occurs twice")
        return found

    def _problems(self, record: VideoRecord) -> list[str]:
        settings = self._source.settings
        problems = [*_wrong_frames(record, settings), *_wrong_texts(record)]
        if not problems:
            ids, mask = encode(self._tokenizer, record.captions, settings.max_text_length)
            if not (np.array_equal(ids, record.input_ids) and np.array_equal(mask, record.attention_mask)):
                problems.append("its token ids are not those of its captions in this vocabulary")
        return problems


_checker: _Checker | None = None  # of this worker, which opens the split once


def _start_checking(source: ShardSource) -> None:
    global _checker
    start_worker()
    _checker = _Checker(source)


def _check_in_worker(start: int, entries: np.ndarray | None) -> _Found:
    assert _checker is not None
    return _checker.check(start, entries)


def _wrong_frames(record: VideoRecord, settings: ShardSettings) -> Iterator[str]:
    try:
        frames = record.frames[np.arange(len(record.frames))]
    except ValueError as error:
        yield f"{error}"
        return
    if settings.tokens:
        shape = (settings.num_kept_frames, settings.tokens.tokens_per_frame, settings.tokens.width)
        if frames.shape != shape or not np.isfinite(frames.astype(np.float32)).all():
            yield f"its tokens, {frames.shape}, are not finite numbers of shape {shape}"
        return
    height, width = frames.shape[1:3]
    expected = {"stretch": {height, width}, "keep_aspect": {min(height, width)}}[settings.frame_shape]
    if len(frames) != settings.num_kept_frames or expected != {settings.resize}:
        yield f"its {len(frames)} frames of {width}x{height} pixels do not fit the settings of the split"
    numbers = record.frame_numbers
    if numbers[0] < 0 or numbers[-1] >= record.num_frames or (np.diff(numbers) < 0).any():
        yield "the numbers of its frames are not in order"


def _wrong_texts(record: VideoRecord) -> Iterator[str]:
    if not record.captions and not record.questions:
        yield "it has neither a caption nor a question"
    if any(not text.strip() for text in (*record.captions, *record.questions, *record.answers)):
        yield "one of its texts is empty"
    if len(record.questions) != len(record.answers):
        yield f"it has {len(record.questions)} questions and {len(record.answers)} answers"
    if len(record.captions) != len(record.input_ids):
        yield f"it has {len(record.captions)} captions, and token ids of {len(record.input_ids)}"


def _duplicates(source: ShardSource, keys: np.ndarray, relation: str) -> list[str]:
    """Names the records whose key, int [videos], occurs before."""
    order = np.argsort(keys, kind="stable")
    again = order[1:][np.diff(keys[order]) == 0]
    first = {int(keys[index]): int(index) for index in order[::-1]}
    return [f"{source.place(int(index))} {relation} record {first[int(keys[index])]}" for index in again]


def _wrong_totals(source: ShardSource, found: _Found, records_sha256: str) -> list[str]:
    """Compares the sums over all records with the manifest."""
    if found.num_captions != source.num_captions:
        return [
            f"split '{source.split}' has {found.num_captions} captions, and its manifest says {source.num_captions}"
        ]
    if records_sha256 != source.records_sha256:
        return [f"the records of split '{source.split}' are not those of its build: rebuild it"]
    return []
