"""Builds a split of a shard set from a caption file and the videos it names: decode, tokenise, write.

Decoding runs in several processes. Everything else streams through this one, in the order of the caption file. A clip
that cannot be used is left out, counted, and listed in the split's `rejected.jsonl`. A build that fails leaves nothing.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import json
import multiprocessing
import os
import re
import shutil
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import BertWordPieceTokenizer
from tqdm import tqdm

from data_pipeline.captions import CaptionRow, read_captions
from data_pipeline.decode import FrameOptions, decode_clip
from data_pipeline.errors import DataError
from data_pipeline.packets import ClipError
from data_pipeline.shards import VOCAB_NAME, ShardSettings, hash_file, list_splits, write_split
from data_pipeline.storage import local_path
from data_pipeline.tokenizer import encode, load_tokenizer, num_tokens, train_vocab, vocab_size

REJECTED_NAME = "rejected.jsonl"


@dataclasses.dataclass(frozen=True)
class BuildReport:
    """What was done with the rows of the caption file: num_rows == num_written + num_rejected."""

    shards: str
    split: str
    num_rows: int
    num_written: int
    num_rejected: int
    rejected_by_reason: dict[str, int]
    num_truncated_captions: int  # of the written ones: longer than max_text_length tokens
    vocab_size: int
    num_bytes: int
    seconds: float
    clips_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as a dict for JSON."""
        return dataclasses.asdict(self)

    def summary(self) -> str:
        """Returns the figures as a few lines to print."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejected_by_reason.items())
        lines = [
            f"{self.shards}/{self.split}: {self.num_rows} rows = {self.num_written} written"
            f" + {self.num_rejected} rejected{f' ({reasons})' if reasons else ''}",
            f"{self.num_bytes / 1e6:.1f} MB in {self.seconds:.1f} s ({self.clips_per_second:.1f} clips/s),"
            f" vocabulary of {self.vocab_size} tokens, {self.num_truncated_captions} captions cut to length",
        ]
        if self.num_rejected:
            lines.append(f"rejected clips: {Path(self.shards, self.split, REJECTED_NAME)}")
        return "\n".join(lines)


@dataclasses.dataclass
class _Tally:
    """What `_examples` counts while it yields records."""

    reasons: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    num_truncated_captions: int = 0


def build_shards(
    captions: str | Path,
    out: str | Path,
    *,
    split: str,
    vocab: str | Path | None = None,
    num_kept_frames: int,
    resize: int,
    max_text_length: int,
    num_workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> BuildReport:
    """Makes split `split` of the shard set `out` from a caption file and the videos it names.

    Args:
      captions: .csv or .json caption file, see `read_captions`.
      out: the shard set's folder; other splits in it stay.
      split: the split's name, such as "train".
      vocab: BERT vocabulary file. By default that of the shard set, if it has another split; else, for the split
        "train" only, one is trained from these captions.
      num_kept_frames: K, frames kept of each clip.
      resize: short side of the kept frames, pixels.
      max_text_length: S, tokens a caption is padded or cut to.
      num_workers: decoding processes; 0 decodes in this one. By default one for each CPU core.
      overwrite: replace the split if it is there already.
      progress: show a progress bar.

    Raises:
      DataError: bad caption file, vocabulary or option; a split that is there already; no usable clip; a path in a
        bucket.
    """
    start, captions, out = time.perf_counter(), local_path(captions), local_path(out)
    _check_options(split, num_kept_frames, resize, max_text_length, num_workers)
    rows = read_captions(captions)
    if (out / split).exists() and not overwrite:
        raise DataError(f"'{out / split}' exists already; choose another folder or split, or --overwrite it")
    tally = _Tally()
    decode = functools.partial(_try_decode, captions.parent, num_kept_frames, resize)
    with _incomplete_folder(out, split) as folder:
        tokenizer = _place_vocab(folder / VOCAB_NAME, out, vocab, split, rows)
        settings = ShardSettings(num_kept_frames, resize, max_text_length, hash_file(folder / VOCAB_NAME))
        with contextlib.closing(_map_rows(decode, rows, num_workers)) as clips:
            bar = tqdm(clips, f"building {split}", len(rows), unit=" clips", disable=not progress)
            num_written = write_split(folder, split, _examples(bar, tokenizer, settings, folder, tally), settings)
        num_rejected, reasons = tally.reasons.total(), dict(tally.reasons.most_common())
        if num_written == 0:
            listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            raise DataError(f"no usable clip in '{captions}', row 1 is '{rows[0].video}' ({len(rows)} rows: {listed})")
        if num_written + num_rejected != len(rows):
            raise RuntimeError(f"{len(rows)} rows, but {num_written} written and {num_rejected} rejected")
        num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    seconds = time.perf_counter() - start
    return BuildReport(
        shards=str(out),
        split=split,
        num_rows=len(rows),
        num_written=num_written,
        num_rejected=num_rejected,
        rejected_by_reason=reasons,
        num_truncated_captions=tally.num_truncated_captions,
        vocab_size=vocab_size(tokenizer),
        num_bytes=num_bytes,
        seconds=seconds,
        clips_per_second=len(rows) / seconds,
    )


def _check_options(
    split: str, num_kept_frames: int, resize: int, max_text_length: int, num_workers: int | None
) -> None:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", split) or split.lower() == "all":
        raise DataError(f"split '{split}' is not a name for a split; use letters, digits and _, and not 'all'")
    options = {"num_kept_frames": (num_kept_frames, 1), "resize": (resize, 1), "max_text_length": (max_text_length, 3)}
    for name, (value, least) in (options | {"num_workers": (num_workers or 0, 0)}).items():
        if value < least:
            raise DataError(f"{name}={value} must be at least {least}")


@contextlib.contextmanager
def _incomplete_folder(out: Path, split: str) -> Iterator[Path]:
    """Yields a hidden folder to build in. At the end it becomes `out/split`; after an error it is deleted."""
    folder, is_new = out / f".{split}.incomplete", not out.exists()
    try:
        lock = _claim(folder)
    except OSError as error:
        raise DataError(f"cannot write shard set '{out}': {error.strerror or error}") from error
    try:
        yield folder
        os.replace(folder / VOCAB_NAME, out / VOCAB_NAME)
        if (out / split).exists():
            shutil.rmtree(out / split)
        folder.rename(out / split)
    except OSError as error:
        raise DataError(f"cannot write shard set '{out}': {error.strerror or error}") from error
    finally:
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
        load_tokenizer(vocab)  # before copying, so that an error names the user's file
        shutil.copyfile(vocab, target)
    elif split == "train":
        train_vocab((row.caption for row in rows), target)
    else:
        raise DataError(f"split '{split}' needs a vocabulary; build split 'train' in '{out}' first, or give --vocab")
    return load_tokenizer(target)


def _try_decode(root: Path, num_kept_frames: int, resize: int, row: CaptionRow) -> np.ndarray | str:
    """Returns the row's frames uint8 [K, h, w, 3], or the reason why there are none. Runs in the worker processes."""
    if not row.video or not row.caption:
        return "no video named" if not row.video else "empty caption"
    try:
        return decode_clip(root / row.video, FrameOptions(num_kept_frames, resize)).frames
    except ClipError as error:
        return str(error)


def _map_rows(decode: Any, rows: list[CaptionRow], num_workers: int | None) -> Generator[tuple[int, CaptionRow, Any]]:
    """Yields (number, row, decode(row)) in order. Each worker decodes at most a few clips ahead."""
    if num_workers is None:
        num_workers = os.cpu_count() or 1
    if num_workers == 0:
        yield from ((number, row, decode(row)) for number, row in enumerate(rows, 1))
        return
    # Spawned: a forked child of a process with JAX or decoding threads can hang.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(min(num_workers, len(rows)), mp_context=context)
    pending: collections.deque[tuple[int, CaptionRow, Any]] = collections.deque()
    try:
        for number, row in enumerate(rows, 1):
            pending.append((number, row, pool.submit(decode, row)))
            if len(pending) > 4 * num_workers:
                number, row, future = pending.popleft()
                yield number, row, future.result()
        for number, row, future in pending:
            yield number, row, future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise DataError(
            f"a decoding process died at or near '{row.video}': out of memory? try fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _examples(
    clips: Iterable[tuple[int, CaptionRow, Any]],
    tokenizer: BertWordPieceTokenizer,
    settings: ShardSettings,
    folder: Path,
    tally: _Tally,
) -> Iterator[dict[str, Any]]:
    """Yields the records to write. Rows without frames are counted, and listed in the folder's `rejected.jsonl`."""
    with (folder / REJECTED_NAME).open("w", encoding="utf-8") as rejected:
        for number, row, video in clips:
            if isinstance(video, str):
                line = {"video": row.video, "reason": video, "row": number, "caption": row.caption}
                rejected.write(json.dumps(line, ensure_ascii=False) + "\n")
                tally.reasons[video.split(":")[0]] += 1
                continue
            input_ids, attention_mask = encode(tokenizer, [row.caption], settings.max_text_length)
            tally.num_truncated_captions += num_tokens(tokenizer, [row.caption])[0] > settings.max_text_length
            yield {
                "video": video,
                "video_id": row.video,
                "caption": row.caption,
                "group": row.group,
                "input_ids": input_ids[0],
                "attention_mask": attention_mask[0],
            }
