"""Builds a split of a shard set from a caption file and the videos it names: decode, tokenise, write.

Decoding runs in several processes. Everything else streams through this one, in the order of the caption file. What
cannot be used is left out, counted, and listed in the split's `rejected.jsonl`. An interrupted build goes on with the
shards that it has finished when the same command runs again.
"""

import contextlib
import dataclasses
import functools
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath
from tokenizers import BertWordPieceTokenizer
from tqdm import tqdm

from data_pipeline.beam_build import build_shards_on_beam
from data_pipeline.build_plan import BuildPlan, clean_rows, group_rows, usual_shard_length
from data_pipeline.captions import CaptionedVideos, CaptionRow, read_captions
from data_pipeline.config import CLIP_TIME_LIMIT, DEFAULT_JPEG_QUALITY, Encoding, FrameShape, TextCleaning
from data_pipeline.decode import FrameOptions
from data_pipeline.errors import DataError
from data_pipeline.finish_split import REJECTED_NAME, PreviousBuild, finish_split
from data_pipeline.incomplete_folder import incomplete_folder, keep_finished_shards, stopping_in_good_order
from data_pipeline.shard_build import NOTHING_KNOWN, build_shard, videos_to_read
from data_pipeline.shards import VOCAB_NAME, ShardSettings, hash_file, list_splits
from data_pipeline.storage import any_path, local_path, size_of, written_locally
from data_pipeline.tokenizer import copy_vocab, load_tokenizer, train_vocab, vocab_size
from data_pipeline.video_reader import VideoReader, read_videos


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
    videos_per_shard: int | None = None,
    num_workers: int | None = None,
    overwrite: bool = False,
    retry_rejected: bool = False,
    beam_runner: str | None = None,
    beam_options: str = "",
    progress: bool = True,
) -> BuildReport:
    """Makes split `split` of the shard set `out` from a caption file and the videos it names.

    Args:
      captions: .csv or .json caption file, see `read_captions`; or rows that were read from other files.
      out: the shard set's folder; other splits in it stay.
      split: the split's name, such as "train".
      vocab: BERT vocabulary file. By default that of the shard set, if it has another split; else, for the split
        "train" (or "train_and_val") only, one is trained from these captions, questions and answers.
      num_kept_frames: K, frames kept of each video.
      resize: pixels: the short side of the kept frames, or both sides of stretched ones.
      max_text_length: S, tokens a caption is padded or cut to.
      clean_text: how captions and questions are cleaned, see `data_pipeline.text_cleaning`.
      frame_shape: "keep_aspect", or "stretch" to make every frame square, as the original does.
      encoding: "jpeg", or "raw" for pixels without loss.
      jpeg_quality: 1 to 100.
      max_damage: share of a video, from 0 to 1, that may be damaged or missing.
      time_limit: seconds for reading one video.
      videos_per_shard: videos in a file of records. By default as many as have about 256 MB.
      num_workers: decoding processes; 0 decodes in this one. By default one for each CPU core.
      overwrite: replace the split if it is there already.
      retry_rejected: read the videos again that an earlier build of the same rows rejected, and keep its other records.
      beam_runner: a runner of Apache Beam that builds the shards, such as "DirectRunner" or "DataflowRunner"; by
        default this process and its workers do.
      beam_options: options of the Beam pipeline, as on a command line.
      progress: show a progress bar.

    Raises:
      DataError: bad caption file, vocabulary or option; a split that is there already; no usable video; a full disk.
    """
    start, out = time.perf_counter(), any_path(out)
    _check_split_name(split)
    _check_range(
        num_kept_frames=(num_kept_frames, 1),
        resize=(resize, 1),
        max_text_length=(max_text_length, 3),
        num_workers=(num_workers or 0, 0),
        videos_per_shard=(1 if videos_per_shard is None else videos_per_shard, 1),
        jpeg_quality=(jpeg_quality, 1, 100),
        max_damage=(max_damage, 0, 1),
        time_limit=(time_limit, 0),
    )
    source = captions if isinstance(captions, CaptionedVideos) else _from_caption_file(local_path(captions))
    source = dataclasses.replace(source, rows=clean_rows(source.rows, clean_text))
    videos = group_rows(source)
    if (out / split).exists() and not overwrite and not retry_rejected:
        raise DataError(f"'{out / split}' exists already; choose another folder or split, or --overwrite it")
    quality = jpeg_quality if encoding == "jpeg" else None
    with stopping_in_good_order(), incomplete_folder(out, split) as folder:
        tokenizer = _place_vocab(folder / VOCAB_NAME, out, vocab, split, source.rows)
        settings = ShardSettings(num_kept_frames, resize, frame_shape, encoding, quality, max_text_length,
                                 hash_file(folder / VOCAB_NAME), clean_text)  # fmt: skip
        plan = BuildPlan(split, videos, max_damage, settings, videos_per_shard or usual_shard_length(settings))
        todo = keep_finished_shards(folder, plan.num_shards, plan.sha256)
        previous = PreviousBuild.open(out, plan) if retry_rejected else None
        if previous:
            todo = previous.take_over(plan, todo, folder)
        frames = FrameOptions(num_kept_frames, resize, frame_shape, max_damage, time_limit)
        reader = VideoReader(source.folder, frames, quality)
        if beam_runner is None:
            _build_shards_here(plan, todo, folder, tokenizer, reader, previous, num_workers, progress)
        else:
            build_shards_on_beam(plan, todo, folder, reader, previous, beam_runner, beam_options)
        tally, num_videos = finish_split(plan, folder)
        if num_videos == 0:
            listed = ", ".join(f"{count} {reason}" for reason, count in tally.most_common_reasons().items())
            raise DataError(
                f"no usable video in {source.source}, row 1 is '{source.rows[0].video}' ({len(source.rows)} rows:"
                f" {listed})"
            )
        num_bytes = sum(map(size_of, folder.iterdir()))
    seconds = time.perf_counter() - start
    return BuildReport(
        shards=str(out),
        split=split,
        num_rows=len(source.rows),
        num_written=tally.num_written,
        num_rejected=tally.num_rejected,
        num_videos=num_videos,
        rejected_by_reason=tally.most_common_reasons(),
        num_truncated_captions=tally.num_truncated_captions,
        num_hdr_videos=tally.num_hdr_videos,
        num_damaged_videos=tally.num_damaged_videos,
        vocab_size=vocab_size(tokenizer),
        num_bytes=num_bytes,
        seconds=seconds,
        videos_per_second=len(videos) / seconds,
    )


def _build_shards_here(
    plan: BuildPlan,
    todo: Sequence[int],
    folder: Path | epath.Path,
    tokenizer: BertWordPieceTokenizer,
    reader: VideoReader,
    previous: PreviousBuild | None,
    num_workers: int | None,
    progress: bool,
) -> None:
    """Builds the shards `todo`, one after the other; workers read the videos of all in one stream."""
    known = functools.lru_cache(3)(previous.known if previous else lambda _: NOTHING_KNOWN)
    wanted = (video for number in todo for video in videos_to_read(plan.shard(number), tokenizer, known(number)))
    num_videos = sum(len(plan.shard(number).videos) for number in todo)
    num_workers = (os.cpu_count() or 1) if num_workers is None else num_workers
    with contextlib.closing(read_videos(reader, wanted, num_workers, num_videos)) as read:
        frames = iter(tqdm(read, f"building {plan.split}", num_videos, unit=" videos", disable=not progress))
        for number in todo:
            build_shard(plan.shard(number), folder, tokenizer, frames, known(number))


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


def _place_vocab(
    target: Path | epath.Path, out: Path | epath.Path, vocab: str | Path | None, split: str, rows: list[CaptionRow]
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
    with written_locally(target) as file:
        if vocab is not None:
            copy_vocab(vocab, file)
        elif split in ("train", "train_and_val"):
            train_vocab((text for row in rows for text in (row.caption, row.question, row.answer) if text), file)
        else:
            raise DataError(
                f"split '{split}' needs a vocabulary; build split 'train' in '{out}' first, or give --vocab"
            )
    return load_tokenizer(target)
