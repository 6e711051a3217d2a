"""Builds a split of a shard set from a caption file and the videos it names: decode, tokenise, write.

Decoding runs in several processes. Everything else streams through this one, in the order of the caption file. What
cannot be used is left out, counted, and listed in the split's `rejected.jsonl`. A build that fails leaves nothing.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import BertWordPieceTokenizer
from tqdm import tqdm

from data_pipeline.captions import CaptionedVideos, CaptionRow, read_captions
from data_pipeline.config import CLIP_TIME_LIMIT, DEFAULT_JPEG_QUALITY, Encoding, FrameShape, TextCleaning
from data_pipeline.decode import FrameOptions, decode_clip
from data_pipeline.errors import DataError
from data_pipeline.packets import ClipError
from data_pipeline.processes import (
    ahead,
    call_until_stopped,
    hold_signals,
    no_signal_while_starting,
    start_stoppable_worker,
)
from data_pipeline.shards import VOCAB_NAME, ShardSettings, VideoRecord, hash_file, list_splits, write_split
from data_pipeline.storage import local_path
from data_pipeline.stored_frames import StoredFrames, encode_jpeg
from data_pipeline.text_cleaning import clean_caption, clean_question
from data_pipeline.tokenizer import copy_vocab, encode, load_tokenizer, num_tokens, train_vocab, vocab_size

REJECTED_NAME = "rejected.jsonl"
_HASHED_BYTES = 1 << 20
_DISK_IS_FULL = ("No space left on device", "Disk quota exceeded", "File too large")


@dataclasses.dataclass(frozen=True)
class BuildReport:
    """What was done with the rows of the caption file: num_rows == num_written + num_rejected."""

    shards: str
    split: str
    num_rows: int  # captions and questions, of all videos
    num_written: int
    num_rejected: int
    num_videos: int  # written
    rejected_by_reason: dict[str, int]
    num_truncated_captions: int  # of the written ones: longer than max_text_length tokens
    num_hdr_videos: int  # of the written ones: colours look washed out, as they are not tone-mapped
    num_damaged_videos: int  # of the written ones: no more damaged than max_damage allows
    vocab_size: int
    num_bytes: int
    seconds: float
    videos_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as a dict for JSON."""
        return dataclasses.asdict(self)

    def summary(self) -> str:
        """Returns the figures as a few lines to print."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejected_by_reason.items())
        lines = [
            f"{self.shards}/{self.split}: {self.num_rows} rows = {self.num_written} written"
            f" + {self.num_rejected} rejected{f' ({reasons})' if reasons else ''}",
            f"{self.num_videos} videos, {self.num_bytes / 1e6:.1f} MB in {self.seconds:.1f} s"
            f" ({self.videos_per_second:.1f} videos/s), vocabulary of {self.vocab_size} tokens,"
            f" {self.num_truncated_captions} captions cut to length",
        ]
        if self.num_hdr_videos:
            lines.append(f"{self.num_hdr_videos} videos have HDR colours (HLG or PQ) and look washed out in the shards")
        if self.num_damaged_videos:
            lines.append(f"{self.num_damaged_videos} videos are damaged a little and were accepted (--max-damage)")
        if self.num_rejected:
            lines.append(f"rejected rows: {Path(self.shards, self.split, REJECTED_NAME)}")
        return "\n".join(lines)


@dataclasses.dataclass
class _Tally:
    """What `_records` counts while it yields records."""

    num_written: int = 0  # rows
    reasons: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    num_truncated_captions: int = 0
    num_hdr_videos: int = 0
    num_damaged_videos: int = 0


@dataclasses.dataclass(frozen=True)
class _Video:
    """A video, or a segment of one, and the rows of the caption file about it."""

    name: str
    start: float | None
    end: float | None
    group: str
    rows: tuple[CaptionRow, ...]
    caption_lengths: tuple[int, ...] = ()  # tokens of the caption of each row, [CLS] and [SEP] included
    empty_rows: tuple[tuple[CaptionRow, str], ...] = ()  # left out, each with the reason

    @property
    def id(self) -> str:
        """The name; of a segment with a media fragment, as in web addresses."""
        return self.name + self.segment

    @property
    def segment(self) -> str:
        """The media fragment, empty for a whole video."""
        if self.start is None and self.end is None:
            return ""
        return f"#t={self.start or 0:g}" + ("" if self.end is None else f",{self.end:g}")


@dataclasses.dataclass(frozen=True)
class _KeptFrames:
    """What a worker process makes of a video."""

    video_key: int
    stored: Any  # as in StoredFrames
    frame_numbers: np.ndarray
    num_frames: int
    is_hdr: bool
    is_damaged: bool


def build_shards(
    captions: str | Path | CaptionedVideos,
    out: str | Path,
    *,
    split: str,
    vocab: str | Path | None = None,
    num_kept_frames: int,
    resize: int,
    max_text_length: int,
    clean_text: TextCleaning = "none",
    frame_shape: FrameShape = "keep_aspect",
    encoding: Encoding = "jpeg",
    jpeg_quality: int = DEFAULT_JPEG_QUALITY,
    max_damage: float = 0.0,
    time_limit: float = CLIP_TIME_LIMIT,
    num_workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> BuildReport:
    """Makes split `split` of the shard set `out` from a caption file and the videos it names.

    Args:
      captions: .csv or .json caption file, see `read_captions`; or rows that were read from other files.
      out: the shard set's folder; other splits in it stay.
      split: the split's name, such as "train".
      vocab: BERT vocabulary file. By default that of the shard set, if it has another split; else, for the split
        "train" (or "train_and_val") only, one is trained from these captions.
      num_kept_frames: K, frames kept of each video.
      resize: pixels: the short side of the kept frames, or both sides of stretched ones.
      max_text_length: S, tokens a caption is padded or cut to.
      clean_text: how captions and questions are cleaned, see `data_pipeline.text_cleaning`.
      frame_shape: "keep_aspect", or "stretch" to make every frame square, as the original does.
      encoding: "jpeg", or "raw" for pixels without loss.
      jpeg_quality: 1 to 100.
      max_damage: share of a video, from 0 to 1, that may be damaged or missing.
      time_limit: seconds for reading one video.
      num_workers: decoding processes; 0 decodes in this one. By default one for each CPU core.
      overwrite: replace the split if it is there already.
      progress: show a progress bar.

    Raises:
      DataError: bad caption file, vocabulary or option; a split that is there already; no usable video; a full disk; a
        path in a bucket.
    """
    start, out = time.perf_counter(), local_path(out)
    _check_split_name(split)
    _check_range(
        num_kept_frames=(num_kept_frames, 1),
        resize=(resize, 1),
        max_text_length=(max_text_length, 3),
        num_workers=(num_workers or 0, 0),
        jpeg_quality=(jpeg_quality, 1, 100),
        max_damage=(max_damage, 0, 1),
        time_limit=(time_limit, 0),
    )
    source = captions if isinstance(captions, CaptionedVideos) else _from_caption_file(local_path(captions))
    rows = [_cleaned(row, clean_text) for row in source.rows]
    videos = _group_rows(source.source, rows)
    if (out / split).exists() and not overwrite:
        raise DataError(f"'{out / split}' exists already; choose another folder or split, or --overwrite it")
    quality = jpeg_quality if encoding == "jpeg" else None
    frames = FrameOptions(num_kept_frames, resize, frame_shape, max_damage, time_limit)
    read = functools.partial(_try_read, source.folder, frames, quality)
    tally = _Tally()
    with _stopping_in_good_order(), _incomplete_folder(out, split) as folder:
        tokenizer = _place_vocab(folder / VOCAB_NAME, out, vocab, split, rows)
        settings = ShardSettings(num_kept_frames, resize, frame_shape, encoding, quality, max_text_length,
                                 hash_file(folder / VOCAB_NAME), clean_text)  # fmt: skip
        with (folder / REJECTED_NAME).open("w", encoding="utf-8") as rejected:
            sorted_videos = (_without_empty_rows(video, tokenizer) for video in videos)
            with contextlib.closing(_map_videos(read, sorted_videos, num_workers, len(videos))) as read_videos:
                bar = tqdm(read_videos, f"building {split}", len(videos), unit=" videos", disable=not progress)
                records = _records(bar, tokenizer, settings, _Rejects(rejected, tally))
                num_videos = write_split(folder, split, records, settings)
        if num_videos == 0:
            listed = ", ".join(f"{count} {reason}" for reason, count in tally.reasons.most_common())
            raise DataError(
                f"no usable video in {source.source}, row 1 is '{rows[0].video}' ({len(rows)} rows: {listed})"
            )
        if tally.num_written + tally.reasons.total() != len(rows):
            raise RuntimeError(
                f"{len(rows)} rows, but {tally.num_written} written and {tally.reasons.total()} rejected"
            )
        num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    seconds = time.perf_counter() - start
    return BuildReport(
        shards=str(out),
        split=split,
        num_rows=len(rows),
        num_written=tally.num_written,
        num_rejected=tally.reasons.total(),
        num_videos=num_videos,
        rejected_by_reason=dict(tally.reasons.most_common()),
        num_truncated_captions=tally.num_truncated_captions,
        num_hdr_videos=tally.num_hdr_videos,
        num_damaged_videos=tally.num_damaged_videos,
        vocab_size=vocab_size(tokenizer),
        num_bytes=num_bytes,
        seconds=seconds,
        videos_per_second=len(videos) / seconds,
    )


def _check_split_name(split: str) -> None:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", split) or split.lower() == "all":
        raise DataError(f"split '{split}' is not a name for a split; use letters, digits and _, and not 'all'")


def _check_range(**options: tuple[float, ...]) -> None:
    """Raises DataError for an option (value, least) or (value, least, most) that is out of its range."""
    for name, (value, least, *most) in options.items():
        if value < least:
            raise DataError(f"{name}={value} must be at least {least}")
        if most and value > most[0]:
            raise DataError(f"{name}={value} must be at most {most[0]}")


def _from_caption_file(path: Path) -> CaptionedVideos:
    return CaptionedVideos(read_captions(path), path.parent, f"'{path}'")


def _cleaned(row: CaptionRow, cleaning: TextCleaning) -> CaptionRow:
    if cleaning == "none":
        return row
    caption, question = clean_caption(row.caption, cleaning), clean_question(row.question, cleaning)
    return dataclasses.replace(row, caption=caption, question=question)


def _group_rows(source: str, rows: Sequence[CaptionRow]) -> list[_Video]:
    """Returns the videos in the order in which they first occur, each with its rows."""
    found: dict[tuple[str, float | None, float | None], list[CaptionRow]] = {}
    for row in rows:
        found.setdefault((row.video, row.start, row.end), []).append(row)
    videos = []
    for key, same in found.items():
        groups = list(dict.fromkeys(row.group for row in same if row.group))
        if len(groups) > 1:
            raise DataError(
                f"{source}: the rows of video '{same[0].video}' name the groups '{groups[0]}' and '{groups[1]}'; a"
                " video belongs to one group"
            )
        videos.append(_Video(*key, groups[0] if groups else "", tuple(same)))
    return videos


@contextlib.contextmanager
def _stopping_in_good_order() -> Iterator[None]:
    """Makes SIGTERM end the build as an exception does, so that it leaves nothing behind."""
    if threading.current_thread() is not threading.main_thread():  # Python calls handlers in the main thread alone
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextlib.contextmanager
def _incomplete_folder(out: Path, split: str) -> Iterator[Path]:
    """Yields a hidden folder to build in. At the end it becomes `out/split`; after an error it is deleted."""
    folder, replaced, is_new = out / f".{split}.incomplete", out / f".{split}.replaced", not out.exists()
    try:
        lock = _claim(folder)
    except OSError as error:
        raise DataError(f"cannot write shard set '{out}': {error.strerror or error}") from error
    try:
        yield folder
        if (out / split).exists():
            shutil.rmtree(replaced, ignore_errors=True)  # of a build that was stopped
        with hold_signals():  # a stop leaves the old split or the new one
            if (out / split).exists():
                (out / split).rename(replaced)
            folder.rename(out / split)
            os.replace(out / split / VOCAB_NAME, out / VOCAB_NAME)
        shutil.rmtree(replaced, ignore_errors=True)
    except DataError:
        raise
    except Exception as error:  # TFDS and ArrayRecord raise other types for a full disk
        full = next((reason for reason in _DISK_IS_FULL if reason in str(error)), None)
        if full or isinstance(error, OSError):
            raise DataError(f"cannot write shard set '{out}': {full or getattr(error, 'strerror', error)}") from error
        raise
    finally:
        if replaced.exists() and not (out / split).exists():
            replaced.rename(out / split)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        if is_new:
            with contextlib.suppress(OSError):
                out.rmdir()  # only if empty


def _claim(folder: Path) -> int:
    """Makes a folder for this process alone, without what a killed build left; returns the descriptor of its lock."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise DataError(f"another process is building in '{folder}'; wait for it, or choose another folder") from None
    except OSError:
        pass  # a file system without locks, where two builds do not notice each other
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return lock


def _place_vocab(
    target: Path, out: Path, vocab: str | Path | None, split: str, rows: list[CaptionRow]
) -> BertWordPieceTokenizer:
    """Writes the vocabulary to `target`: the given one, else that of the shard set, else one made from the captions."""
    others = [name for name in list_splits(out) if name != split]
    shared = out / VOCAB_NAME
    if others and shared.is_file():
        if vocab is not None and load_tokenizer(vocab).get_vocab() != load_tokenizer(shared).get_vocab():
            raise DataError(
                f"vocabulary '{vocab}' is not the one that split '{others[0]}' in '{out}' was built with:"
                " choose another folder or leave the vocabulary out"
            )
        vocab = shared
    if vocab is not None:
        copy_vocab(vocab, target)
    elif split in ("train", "train_and_val"):
        train_vocab((row.caption for row in rows), target)
    else:
        raise DataError(f"split '{split}' needs a vocabulary; build split 'train' in '{out}' first, or give --vocab")
    return load_tokenizer(target)


def _try_read(root: Path, options: FrameOptions, jpeg_quality: int | None, video: _Video) -> _KeptFrames | str:
    """Returns the frames of a video, or the reason why there are none. Runs in the worker processes."""
    if not video.rows:
        return "no row is left"
    try:
        clip = decode_clip(root / video.name, options, start=video.start, end=video.end)
        key = _video_key(root / video.name, video.segment)
    except ClipError as error:
        return str(error)
    except OSError as error:
        return f"not readable: {error.strerror or error}"
    stored = clip.frames if jpeg_quality is None else encode_jpeg(clip.frames, jpeg_quality)
    return _KeptFrames(key, stored, clip.frame_numbers, clip.num_frames, clip.is_hdr, clip.damage > 0)


def _video_key(path: Path, segment: str) -> int:
    """Returns `VideoRecord.video_key`, from the size and three parts of the file: a film has several GB."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256(f"{size} {segment}".encode())
        for start in (0, max(0, size - _HASHED_BYTES) // 2, max(0, size - _HASHED_BYTES)):
            file.seek(start)
            digest.update(file.read(_HASHED_BYTES))
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def _map_videos(
    read: Any, videos: Iterable[_Video], num_workers: int | None, num_videos: int
) -> Generator[tuple[_Video, Any]]:
    """Yields (video, read(video)) in order. Each worker reads at most a few videos ahead."""
    if num_workers is None:
        num_workers = os.cpu_count() or 1
    if num_workers == 0:
        yield from ((video, read(video)) for video in videos)
        return
    # Spawned: a forked child of a process with JAX or decoding threads can hang.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = concurrent.futures.ProcessPoolExecutor(
        min(num_workers, num_videos), mp_context=context, initializer=start_stoppable_worker, initargs=(stop,)
    )
    latest = ""  # the video last submitted or waited for

    def submit(video: _Video) -> tuple[_Video, concurrent.futures.Future[Any]]:
        nonlocal latest
        latest = video.name
        with no_signal_while_starting():  # the first submissions start the workers
            return video, pool.submit(call_until_stopped, read, video)

    try:
        for video, future in ahead(map(submit, videos), 4 * num_workers):
            latest = video.name
            yield video, future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise DataError(f"a decoding process died at or near '{latest}': out of memory? try fewer workers") from error
    finally:
        stop.set()  # a long video takes minutes, more than a scheduler waits before it kills what it has asked to stop
        pool.shutdown(cancel_futures=True)


@dataclasses.dataclass(frozen=True)
class _Rejects:
    """The open `rejected.jsonl`, a line for each row that cannot be used."""

    file: Any
    tally: _Tally

    def add(self, row: CaptionRow, reason: str) -> None:
        """Lists and counts a row."""
        line = {"video": row.video, "reason": reason, "row": row.number, "caption": row.caption or row.question}
        self.file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.tally.reasons[reason.split(":")[0]] += 1


def _without_empty_rows(video: _Video, tokenizer: BertWordPieceTokenizer) -> _Video:
    """Returns the video with the rows that hold a text and, apart from them, those that do not."""
    kept, kept_lengths, empty = [], [], []
    lengths = num_tokens(tokenizer, [row.caption for row in video.rows])
    for row, length in zip(video.rows, lengths, strict=True):
        if not row.video:
            empty.append((row, "no video named"))
        elif row.question and not row.answer:
            empty.append((row, "question without an answer"))
        elif length > 2 or (row.question and not row.caption):  # more than [CLS] and [SEP]
            kept.append(row)
            kept_lengths.append(length)
        else:
            empty.append((row, "empty caption: no token in it" if row.caption else "empty caption"))
    return dataclasses.replace(video, rows=tuple(kept), caption_lengths=tuple(kept_lengths), empty_rows=tuple(empty))


def _records(
    videos: Iterable[tuple[_Video, _KeptFrames | str]],
    tokenizer: BertWordPieceTokenizer,
    settings: ShardSettings,
    rejects: _Rejects,
) -> Iterator[VideoRecord]:
    """Yields the records to write. Empty rows and those of videos without frames are listed."""
    tally = rejects.tally
    for video, kept in videos:
        for row, reason in video.empty_rows:
            rejects.add(row, reason)
        if isinstance(kept, str):
            for row in video.rows:
                rejects.add(row, kept)
            continue
        captions = tuple(row.caption for row in video.rows if row.caption)
        asked = [row for row in video.rows if row.question]
        input_ids, attention_mask = encode(tokenizer, captions, settings.max_text_length)
        tally.num_written += len(video.rows)
        tally.num_truncated_captions += sum(n > settings.max_text_length for n in video.caption_lengths)
        tally.num_hdr_videos += kept.is_hdr
        tally.num_damaged_videos += kept.is_damaged
        yield VideoRecord(
            video_id=video.id,
            video_key=kept.video_key,
            group=video.group,
            frames=StoredFrames(kept.stored, settings.encoding),
            frame_numbers=kept.frame_numbers,
            num_frames=kept.num_frames,
            captions=captions,
            input_ids=input_ids,
            attention_mask=attention_mask,
            questions=tuple(row.question for row in asked),
            answers=tuple(row.answer for row in asked),
        )
