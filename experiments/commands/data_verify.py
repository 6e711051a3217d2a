"""`stgt data verify`."""

import dataclasses

from experiments.commands.values import Figures
from stgt_jax.errors import STGTError


def data_verify(
    shards: str,  # folder of the shard set
    *,
    num_workers: int | None = None,  # processes that read; by default one for each CPU core
) -> Figures:
    """Check a shard set: every file, every record, every frame.

    Each problem is named by its file and record. The exit status is 2 if there is one.
    """
    from data_pipeline.verify import verify_shards

    reports = verify_shards(shards, num_workers=num_workers)
    for report in reports:
        print(
            f"{report.split}: {report.num_videos} videos, {report.num_captions} captions, {report.num_questions}"
            f" questions, {len(report.problems)} problems"
        )
        for line in (*report.problems, *report.remarks):
            print(f"  {line}")
    if num_problems := sum(len(report.problems) for report in reports):
        raise STGTError(f"'{shards}' has {num_problems} problems, listed above; rebuild what they name")
    return {report.split: dataclasses.asdict(report) for report in reports}
