"""Builds one shard of a split: the records of its videos, and a report of what became of every row.

While the split is being built, the report lies beside the file of records, as a JSON file. It is written last: a shard
with a report is finished, and is not built again.
"""

import concurrent.futures
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from tokenizers import BertWordPieceTokenizer

from data_pipeline.build_plan import ShardPlan, Video
from data_pipeline.captions import CaptionRow
from data_pipeline.shard_writer import WrittenShard, shard_name, write_shard
from data_pipeline.shards import INDEX_TYPE, VideoRecord
from data_pipeline.storage import size_of, written_locally
from data_pipeline.stored_frames import StoredFrames
from data_pipeline.tokenizer import encode, num_tokens
from data_pipeline.video_reader import KeptFrames

REPORTS = "shard-*.json"
ROW_REASONS = ("no video named", "question without an answer", "empty caption")  # whatever the video is


@dataclasses.dataclass
class Tally:
    """What is counted while a shard is built."""

    num_written: int = 0  # rows
    num_rejected: int = 0
    rejected_by_reason: dict[str, int] = dataclasses.field(default_factory=dict)
    num_truncated_captions: int = 0  # of the written ones
    num_hdr_videos: int = 0  # likewise
    num_damaged_videos: int = 0

    def reject(self, reason: str, count: int = 1) -> None:
        """Counts rejected rows."""
        self.num_rejected += count
        self.rejected_by_reason[reason] = self.rejected_by_reason.get(reason, 0) + count

    def add(self, other: "Tally") -> None:
        """Adds what was counted elsewhere."""
        for name in ("num_written", "num_truncated_captions", "num_hdr_videos", "num_damaged_videos"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, count in other.rejected_by_reason.items():
            self.reject(reason, count)

    def most_common_reasons(self) -> dict[str, int]:
        """Returns the reasons, that of most rows first."""
        return dict(sorted(self.rejected_by_reason.items(), key=lambda item: -item[1]))


@dataclasses.dataclass(frozen=True)
class ShardReport:
    """What became of the rows of one shard."""

    written: WrittenShard | None  # None if none of its videos could be used
    tally: Tally
    rejected: list[dict[str, Any]]  # lines of rejected.jsonl


@dataclasses.dataclass(frozen=True)
class KnownVideos:
    """Records of an earlier build of the same shard, whose videos are not read again."""

    records: Mapping[str, VideoRecord]  # by the id of the video
    num_hdr_videos: int = 0
    num_damaged_videos: int = 0


NOTHING_KNOWN = KnownVideos({})


def build_shard(
    plan: ShardPlan,
    folder: Path | epath.Path,
    tokenizer: BertWordPieceTokenizer,
    frames: Iterator[KeptFrames | str],
    known: KnownVideos = NOTHING_KNOWN,
) -> ShardReport:
    """Writes the file of records of a shard, and its report.

    Args:
      plan: of the shard.
      folder: to write to.
      tokenizer: of the captions.
      frames: what was read of each of `videos_to_read`, in order.
      known: records that are taken as they are.
    """
    tally, rejected = Tally(), list[dict[str, Any]]()
    tally.num_hdr_videos, tally.num_damaged_videos = known.num_hdr_videos, known.num_damaged_videos
    records = _records(plan, tokenizer, frames, known.records, _Counts(tally, rejected))
    written = write_shard(folder / shard_name(plan.split, plan.number), records, plan.settings)
    report = ShardReport(written, tally, rejected)
    write_report(folder, plan.number, plan.plan_sha256, report)
    return report


def videos_to_read(
    plan: ShardPlan, tokenizer: BertWordPieceTokenizer, known: KnownVideos = NOTHING_KNOWN
) -> list[Video]:
    """Returns the videos of which `build_shard` needs the frames: those that have a text and are not known."""
    return [video for video in plan.videos if video.id not in known.records and _sort_rows(video, tokenizer).kept]


def write_report(folder: Path | epath.Path, number: int, plan_sha256: str, report: ShardReport) -> None:
    """Writes the report of a finished shard."""
    content = {"plan_sha256": plan_sha256, **dataclasses.asdict(report)}
    if report.written:
        content["written"]["index"] = report.written.index.tolist()
    with written_locally(report_path(folder, number)) as path:
        path.write_text(json.dumps(content, ensure_ascii=False))


def read_reports(folder: Path | epath.Path, num_shards: int, plan_sha256: str) -> list[ShardReport | None]:
    """Returns the report of every shard that is finished already, by the same plan; None for the others."""
    with concurrent.futures.ThreadPoolExecutor(16) as pool:  # a bucket takes its time for each
        return list(pool.map(functools.partial(_read_report, folder, plan_sha256), range(num_shards)))


def _read_report(folder: Path | epath.Path, plan_sha256: str, number: int) -> ShardReport | None:
    try:
        content = json.loads(report_path(folder, number).read_text())
        if content["plan_sha256"] != plan_sha256:
            return None
        written = content["written"]
        if written:
            entries = np.array([tuple(entry) for entry in written["index"]], INDEX_TYPE)
            written = WrittenShard(**{**written, "index": entries})
            if size_of(folder / written.file) != written.num_bytes:
                return None
        return ShardReport(written, Tally(**content["tally"]), content["rejected"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def report_path(folder: Path | epath.Path, number: int) -> Any:
    """Returns where the report of a shard is."""
    return folder / f"shard-{number:05d}.json"


@dataclasses.dataclass(frozen=True)
class _Counts:
    tally: Tally
    rejected: list[dict[str, Any]]

    def reject(self, row: CaptionRow, reason: str) -> None:
        line = {"video": row.video, "reason": reason, "row": row.number, "caption": row.caption or row.question}
        self.rejected.append(line)
        self.tally.reject(reason.split(":")[0])


@dataclasses.dataclass(frozen=True)
class _SortedRows:
    """The rows of a video that say something, with the tokens of each caption, and the others, each with the reason."""

    kept: list[CaptionRow]
    lengths: list[int]  # [CLS] and [SEP] included
    empty: list[tuple[CaptionRow, str]]


def _sort_rows(video: Video, tokenizer: BertWordPieceTokenizer) -> _SortedRows:
    found = _SortedRows([], [], [])
    lengths = num_tokens(tokenizer, [row.caption for row in video.rows])
    for row, length in zip(video.rows, lengths, strict=True):
        if not row.video:
            found.empty.append((row, "no video named"))
        elif row.question and not row.answer:
            found.empty.append((row, "question without an answer"))
        elif length > 2 or (row.question and not row.caption):  # more than [CLS] and [SEP]
            found.kept.append(row)
            found.lengths.append(length)
        else:
            found.empty.append((row, "empty caption: no token in it" if row.caption else "empty caption"))
    return found


def _records(
    plan: ShardPlan,
    tokenizer: BertWordPieceTokenizer,
    frames: Iterator[KeptFrames | str],
    known: Mapping[str, VideoRecord],
    counts: _Counts,
) -> Iterator[VideoRecord]:
    """Yields the records to write. Empty rows and those of videos without frames are listed."""
    max_length = plan.settings.max_text_length
    for video in plan.videos:
        rows = _sort_rows(video, tokenizer)
        for row, reason in rows.empty:
            counts.reject(row, reason)
        if not rows.kept:
            continue
        record = known.get(video.id)
        if record is None:
            kept = next(frames)
            if isinstance(kept, str):
                for row in rows.kept:
                    counts.reject(row, kept)
                continue
            counts.tally.num_hdr_videos += kept.is_hdr
            counts.tally.num_damaged_videos += kept.is_damaged
            record = _record(plan, video, rows.kept, tokenizer, kept)
        counts.tally.num_written += len(rows.kept)
        counts.tally.num_truncated_captions += sum(length > max_length for length in rows.lengths)
        yield record


def _record(
    plan: ShardPlan, video: Video, rows: list[CaptionRow], tokenizer: BertWordPieceTokenizer, kept: KeptFrames
) -> VideoRecord:
    captions = tuple(row.caption for row in rows if row.caption)
    asked = [row for row in rows if row.question]
    input_ids, attention_mask = encode(tokenizer, captions, plan.settings.max_text_length)
    return VideoRecord(
        video_id=video.id,
        video_key=kept.video_key,
        group=video.group,
        frames=StoredFrames(kept.stored, plan.settings.encoding),
        frame_numbers=kept.frame_numbers,
        num_frames=kept.num_frames,
        captions=captions,
        input_ids=input_ids,
        attention_mask=attention_mask,
        questions=tuple(row.question for row in asked),
        answers=tuple(row.answer for row in asked),
    )
