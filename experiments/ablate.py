"""The ablation: trains models without the graph, without its weights and without CSAL for the same number of steps.

Every arm has two stages. Arms with the same graph variant share the first; the second uses VTC or CSAL.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.config import TEST_SPLIT
from data_pipeline.storage import local_path
from experiments.demo_report import BATCH, K_TEST
from experiments.evaluate import retrieval
from experiments.pretrain import pretrain_step, stage_recipe
from experiments.recipe_fields import list_fields
from experiments.recipes import Recipe
from experiments.steps import Steps, write_json
from experiments.tables import format_table, number
from stgt_jax.eval.metrics import RECALLS
from stgt_jax.train.run_lock import locked

# name of the arm -> (graph.variant, loss.contrastive of the second stage)
ARMS = {
    "no graph (mean over frames)": ("none", "vtc"),
    "graph without its weights": ("unweighted", "vtc"),
    "full": ("full", "vtc"),
    "full, CSAL in stage 2": ("full", "csal"),
}


def run_ablation(workdir: str | Path, shards: str | Path, *, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Trains and measures every arm that is not finished yet, and prints the table.

    Args:
      workdir: folder for a folder of each training, and ablation.json.
      shards: shard set of moving_shapes with the splits train and test.
      fields: new values for fields of both recipes, by full name.

    Returns:
      The contents of ablation.json: "arms", the retrieval figures of every arm by its name, and "seconds".

    Raises:
      STGTError: an option or the shards are refused, or the folder is in use or holds another ablation.
    """
    workdir = local_path(workdir)
    trainings = _trainings(workdir, str(shards), fields)
    settings = {f"{name}.{option}": value for name, r in trainings.items() for option, value in list_fields(r).items()}
    with locked(workdir):
        steps = Steps(workdir, settings)
        for name, recipe in trainings.items():
            pretrain_step(steps, name, recipe, workdir / name)
        figures = {}
        for arm, (variant, contrastive) in ARMS.items():
            checkpoint = workdir / _stage2_name(variant, contrastive)
            measure = functools.partial(_measure, checkpoint, shards)
            figures[arm] = steps.run(f"retrieval_{checkpoint.name}", f"measuring: {arm}", measure)
    print(format_arms(figures))
    result = {"arms": figures, "seconds": steps.seconds}
    write_json(workdir / "ablation.json", result)
    return result


def format_arms(figures: Mapping[str, Any]) -> str:
    """Returns a text table: text-to-video recalls, and how often the caption in the right order is preferred."""
    rows = []
    for arm, result in figures.items():
        recalls = {f"R@{k}": f"{result['similarity'][f't2v_r{k}']:.1f}" for k in RECALLS}
        twins = number(result["time_order"]["similarity"]["twin_accuracy"], ".1f")
        rows.append({"text to video, by similarity": arm, **recalls, "right order preferred": twins})
    return format_table(rows, left=["text to video, by similarity"])


def _trainings(workdir: Path, shards: str, fields: Mapping[str, Any]) -> dict[str, Recipe]:
    """Returns the recipe of every training by the name of its folder: all first stages, then all second stages."""
    first, second = {}, {}
    for variant, contrastive in ARMS.values():
        fixed, name = {"data.shards": shards, "model.graph.variant": variant}, f"stage1_{variant}"
        first[name] = stage_recipe("moving_shapes_stage1", fields, fixed)
        fixed |= {"train.loss.contrastive": contrastive, "weights.initial": str(workdir / name)}
        second[_stage2_name(variant, contrastive)] = stage_recipe("moving_shapes_stage2", fields, fixed)
    return first | second


def _measure(checkpoint: Path, shards: str | Path) -> dict[str, Any]:
    return retrieval(checkpoint, shards, split=TEST_SPLIT, k_test=K_TEST, batch_size=BATCH).to_dict()


def _stage2_name(variant: str, contrastive: str) -> str:
    return f"stage2_{variant}_{contrastive}"
