"""The demo: makes clips and shards, trains two stages, measures retrieval and draws the report.

These are steps of one run (`experiments.steps`): an interrupted demo continues after the last finished step.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.moving_shapes import make_moving_shapes
from data_pipeline.storage import local_path
from experiments.demo_report import REPORT_NAME, STAGES, measure_and_draw
from experiments.made_shards import build_splits
from experiments.pretrain import pretrain_step, stage_recipe
from experiments.recipe_fields import list_fields
from experiments.recipes import Recipe
from experiments.steps import Steps, write_json
from stgt_jax.eval.captioning import describe_metrics
from stgt_jax.eval.metrics import format_metrics
from stgt_jax.train.run_lock import locked

RESIZE = 72  # short side in pixels, a little more than the 64 of a crop
NUM_KEPT_FRAMES = 16
MAX_TEXT_LENGTH = 24  # tokens; the longest caption has 20


def run_demo(workdir: str | Path, *, num_train: int, num_test: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Runs the steps of the demo that are not finished yet, and prints the figures.

    Args:
      workdir: folder for clips/, shards/, stage1/, stage2/, demo.json and report.html.
      num_train: training clips.
      num_test: test clips.
      fields: new values for fields of both recipes, by full name.

    Returns:
      The contents of demo.json: the results and the seconds of every step.

    Raises:
      STGTError: an option is refused, or the folder is in use or holds a demo with other settings.
    """
    workdir = local_path(workdir)
    stages = _stages(workdir, fields)
    settings = {f"{stage}.{name}": value for stage in STAGES for name, value in list_fields(stages[stage]).items()}
    with locked(workdir):
        steps = Steps(workdir, {"num_train": num_train, "num_test": num_test, **settings})

        clips, shards = workdir / "clips", workdir / "shards"
        figures: dict[str, Any] = {}
        make_clips = functools.partial(make_moving_shapes, clips, num_train=num_train, num_test=num_test)
        figures["clips"] = steps.run("clips", f"making {num_train} + {num_test} clips", make_clips, output=clips)
        sizes = {"num_kept_frames": NUM_KEPT_FRAMES, "resize": RESIZE, "max_text_length": MAX_TEXT_LENGTH}
        build = functools.partial(build_splits, clips, shards, ("train", "test"), **sizes)
        figures["shards"] = steps.run("shards", "building shards", build, output=shards)
        for stage in STAGES:
            figures[stage] = pretrain_step(steps, stage, stages[stage], workdir / stage)
        title, report = "measuring retrieval and drawing the report", workdir / REPORT_NAME
        figures["retrieval"] = steps.run("retrieval", title, lambda: measure_and_draw(workdir), output=report)

    figures["seconds"] = steps.seconds | {"total": sum(steps.seconds.values())}
    write_json(workdir / "demo.json", figures)
    print(_summary(workdir, figures))
    return figures


def _stages(workdir: Path, fields: Mapping[str, Any]) -> dict[str, Recipe]:
    fixed = {"data.shards": str(workdir / "shards")}
    second = {**fixed, "weights.initial": str(workdir / "stage1")}
    return {
        "stage1": stage_recipe("moving_shapes_stage1", fields, fixed),
        "stage2": stage_recipe("moving_shapes_stage2", fields, second),
    }


def _summary(workdir: Path, figures: Mapping[str, Any]) -> str:
    retrieved = figures["retrieval"]
    ordered, shuffled = retrieved["frames in order"], retrieved["frames shuffled"]
    rows = {"": ordered["similarity"], "re-ranked": ordered["reranked"], "frames shuffled": shuffled["similarity"]}
    return "\n".join(
        [
            "",
            f"{ordered['num_videos']} test videos that training has not seen, {ordered['num_texts']} captions",
            format_metrics(rows),
            "",
            retrieved["time_order_table"],
            "",
            f"captions of the test videos: {describe_metrics(retrieved['captions']['metrics'])}",
            "",
            *(f"{name:<10}{seconds:8.0f} s" for name, seconds in figures["seconds"].items()),
            "",
            f"figures: {workdir / 'demo.json'}",
            f"pictures: {workdir / REPORT_NAME}",
        ]
    )
