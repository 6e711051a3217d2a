"""Makes a split of finished shards, and takes a split apart again so that rejected videos can be read once more."""

import dataclasses
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from data_pipeline.build_plan import BuildPlan
from data_pipeline.errors import DataError
from data_pipeline.shard_build import (
    ROW_REASONS,
    KnownVideos,
    ShardReport,
    Tally,
    read_reports,
    report_path,
    write_report,
)
from data_pipeline.shard_writer import WrittenShard, describe_split, shard_name
from data_pipeline.shards import ShardSource, open_shards
from data_pipeline.storage import copy_file, move_files

REJECTED_NAME = "rejected.jsonl"


def finish_split(plan: BuildPlan, folder: Path | epath.Path) -> tuple[Tally, int]:
    """Describes the finished shards in `folder` as one split; returns what was counted, and the number of videos.

    If no video could be used nothing is described, and the reports are removed.
    """
    total, lines, written, about = Tally(), list[str](), list[WrittenShard](), list[dict[str, Any]]()
    for number, report in enumerate(read_reports(folder, plan.num_shards, plan.sha256)):
        if report is None:
            raise RuntimeError(f"shard {number} of {plan.num_shards} is not finished")
        total.add(report.tally)
        lines += (json.dumps(line, ensure_ascii=False) + "\n" for line in report.rejected)
        shard = report.written and _renumbered(report.written, shard_name(plan.split, len(written)), folder)
        if shard:
            written.append(shard)
        described = shard.described() if shard else {"num_records": 0}
        about.append({"file": shard and shard.file, **described, "tally": dataclasses.asdict(report.tally)})
    num_rows = sum(len(video.rows) for video in plan.videos)
    if total.num_written + total.num_rejected != num_rows:
        raise RuntimeError(f"{num_rows} rows, but {total.num_written} written and {total.num_rejected} rejected")
    if written:
        (folder / REJECTED_NAME).write_text("".join(lines), encoding="utf-8")
        describe_split(folder, plan.split, written, plan.settings, {"rows_sha256": plan.rows_sha256, "shards": about})
    for number in range(plan.num_shards):
        report_path(folder, number).unlink(missing_ok=True)
    return total, sum(len(shard.index) for shard in written)


def _renumbered(shard: WrittenShard, name: str, folder: Path | epath.Path) -> WrittenShard:
    """Gives a file the next free number: shards without any usable video have no file."""
    if shard.file != name:
        move_files({folder / shard.file: folder / name})
    return dataclasses.replace(shard, file=name)


@dataclasses.dataclass(frozen=True)
class PreviousBuild:
    """A finished split, whose rejected videos are to be read again."""

    source: ShardSource

    @classmethod
    def open(cls, shards: str | os.PathLike[str], plan: BuildPlan) -> "PreviousBuild":
        """Opens the split. Raises DataError where it is not there, or was built from other rows or settings."""
        source = open_shards(shards, plan.split)
        if source.manifest.get("rows_sha256") != plan.rows_sha256:
            raise DataError(
                f"--retry-rejected: split '{plan.split}' in '{shards}' was built from other rows or settings;"
                " give the command that built it, or --overwrite it"
            )
        return cls(source)

    def known(self, number: int) -> KnownVideos:
        """Returns the records of a shard, all of which are then in memory."""
        described = self.source.manifest["shards"]
        start = sum(shard["num_records"] for shard in described[:number])
        records = [self.source[index] for index in range(start, start + described[number]["num_records"])]
        tally = described[number]["tally"]
        by_id = {record.video_id: record for record in records}
        return KnownVideos(by_id, tally["num_hdr_videos"], tally["num_damaged_videos"])

    def take_over(self, plan: BuildPlan, todo: Sequence[int], folder: Path | epath.Path) -> list[int]:
        """Takes the shards without a rejected video over to `folder`, as finished ones; returns those left to do."""
        index, rejected, start, left = self.source.index(), iter(self._rejected()), 0, list(todo)
        for number, described in enumerate(self.source.manifest["shards"]):
            lines = list(itertools.islice(rejected, described["tally"]["num_rejected"]))
            entries = index[start : start + described["num_records"]]
            start += described["num_records"]
            if number not in todo or not all(line["reason"].split(":")[0] in ROW_REASONS for line in lines):
                continue
            written = None
            if described["file"]:
                file = self.source.manifest["files"][described["file"]]
                fields = {name: described[name] for name in ("num_record_bytes", "num_questions", "records_sha256")}
                name = shard_name(plan.split, number)
                written = WrittenShard(name, file["bytes"], file["sha256"], **fields, index=entries)
                copy_file(self._folder / described["file"], folder / name)
            write_report(folder, number, plan.sha256, ShardReport(written, Tally(**described["tally"]), lines))
            left.remove(number)
        return left

    @property
    def _folder(self) -> epath.Path:
        return self.source.shards / self.source.split

    def _rejected(self) -> list[dict[str, Any]]:
        path = self._folder / REJECTED_NAME
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise DataError(f"'{path}' cannot be read: {error}; --overwrite the split") from error
        expected = sum(shard["tally"]["num_rejected"] for shard in self.source.manifest["shards"])
        if len(lines) != expected:
            raise DataError(f"'{path}' has {len(lines)} rows, not {expected}; --overwrite the split")
        return lines
