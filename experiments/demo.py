"""The demo: clips, shards, two stages of training, retrieval with frames in order and out of order, and a page of it.

Everything is a step of its own in one folder (`experiments.steps`), so a demo that was cut off goes on where it was.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.build import build_shards
from data_pipeline.moving_shapes import make_moving_shapes
from data_pipeline.storage import local_path
from experiments.demo_report import REPORT_NAME, STAGES, measure_and_draw
from experiments.pretrain import pretrain_step, stage_recipe
from experiments.recipe_fields import list_fields
from experiments.recipes import Recipe
from experiments.steps import Steps, write_json
from stgt_jax.eval.metrics import format_metrics
from stgt_jax.train.run_lock import locked

RESIZE = 72  # pixels of the short side: a little more than the 64 of a crop
NUM_KEPT_FRAMES = 16
MAX_TEXT_LENGTH = 24  # tokens; the longest caption has 20


def run_demo(workdir: str | Path, *, num_train: int, num_test: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Runs the demo's steps, or what is left of them, in `workdir`; prints what they give.

    Args:
      workdir: gets clips/, shards/, stage1/, stage2/, demo.json and report.html.
      num_train: training clips.
      num_test: test clips.
      fields: of both stages' recipes that get another value, by full name.

    Returns:
      What demo.json holds: seconds a step, the counts, each stage's last losses, the retrieval figures.

    Raises:
      STGTError: options that can't work, or a folder that holds another demo or is in use.
    """
    workdir = local_path(workdir)
    stages = _stages(workdir, fields)
    settings = {f"{stage}.{name}": value for stage in STAGES for name, value in list_fields(stages[stage]).items()}
    with locked(workdir):
        steps = Steps(workdir, {"num_train": num_train, "num_test": num_test, **settings})

        clips, shards = workdir / "clips", workdir / "shards"
        figures: dict[str, Any] = {}
        figures["clips"] = steps.run(
            "clips",
            f"making {num_train} + {num_test} clips",
            lambda: make_moving_shapes(clips, num_train=num_train, num_test=num_test),
            output=clips,
        )
        figures["shards"] = steps.run("shards", "building shards", lambda: _build(clips, shards), output=shards)
        for stage in STAGES:
            figures[stage] = pretrain_step(steps, stage, stages[stage], workdir / stage)
        figures["retrieval"] = steps.run(
            "retrieval",
            "measuring retrieval and drawing the report",
            lambda: measure_and_draw(workdir),
            output=workdir / REPORT_NAME,
        )

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


def _build(clips: Path, shards: Path) -> dict[str, Any]:
    return {
        split: build_shards(
            clips / split / "captions.csv",
            shards,
            split=split,
            num_kept_frames=NUM_KEPT_FRAMES,
            resize=RESIZE,
            max_text_length=MAX_TEXT_LENGTH,
            overwrite=True,
        ).to_dict()
        for split in ("train", "test")
    }


def _summary(workdir: Path, figures: Mapping[str, Any]) -> str:
    retrieved = figures["retrieval"]
    ordered = retrieved["frames in order"]
    rows = {"": ordered["similarity"], "re-ranked": ordered["reranked"]}
    rows["frames shuffled"] = retrieved["frames shuffled"]["similarity"]
    return "\n".join(
        [
            "",
            f"{ordered['num_videos']} test videos, {ordered['num_texts']} captions, none seen in training",
            format_metrics(rows),
            "",
            retrieved["time_order_table"],
            "",
            *(f"{name:<10}{seconds:8.0f} s" for name, seconds in figures["seconds"].items()),
            "",
            f"figures: {workdir / 'demo.json'}",
            f"pictures: {workdir / REPORT_NAME}",
        ]
    )
