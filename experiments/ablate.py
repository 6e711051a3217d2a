"""The ablation: what the graph module, its weights and CSAL each bring, all arms trained for the same number of steps.

Every arm has two stages. The first is shared by arms of one graph variant; the second keeps VTC or goes over to CSAL.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.storage import local_path
from experiments.demo_report import BATCH, K_TEST, TEST_SPLIT
from experiments.evaluate import retrieval
from experiments.pretrain import pretrain_step, stage_recipe
from experiments.recipe_fields import list_fields
from experiments.recipes import Recipe
from experiments.steps import Steps, write_json
from stgt_jax.train.run_lock import locked

# name of the arm: graph.variant, and loss.contrastive of the second stage
ARMS = {
    "no graph (mean over frames)": ("none", "vtc"),
    "graph without its weights": ("unweighted", "vtc"),
    "full": ("full", "vtc"),
    "full, CSAL in stage 2": ("full", "csal"),
}


def run_ablation(workdir: str | Path, shards: str | Path, *, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Trains and measures every arm, or those that are left, in `workdir`; prints the table.

    Args:
      workdir: gets a folder for each training, and ablation.json.
      shards: shard set of moving_shapes with the splits train and test.
      fields: of both stages' recipes that get another value, by full name.

    Returns:
      What ablation.json holds: under "arms" the retrieval figures of every arm by its name, and the seconds.

    Raises:
      STGTError: options or shards that can't work, or a folder that holds another ablation or is in use.
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
            figures[arm] = steps.run(
                f"retrieval_{checkpoint.name}",
                f"measuring: {arm}",
                functools.partial(_measure, checkpoint, shards),
            )
    print(format_table(figures))
    result = {"arms": figures, "seconds": steps.seconds}
    write_json(workdir / "ablation.json", result)
    return result


def format_table(figures: Mapping[str, Any]) -> str:
    """Returns a text table: text-to-video recalls, and how often the caption in the right order is preferred."""
    width = max(map(len, figures))
    lines = [f"{'text to video, by similarity':<{width}}{'R@1':>8}{'R@5':>8}{'R@10':>8}{'right order preferred':>23}"]
    for arm, result in figures.items():
        plain, twins = result["similarity"], result["time_order"]["similarity"]["twin_accuracy"]
        recalls = "".join(f"{plain[f't2v_r{k}']:8.1f}" for k in (1, 5, 10))
        lines.append(f"{arm:<{width}}{recalls}{'-' if twins is None else f'{twins:.1f}':>23}")
    return "\n".join(lines)


def _trainings(workdir: Path, shards: str, fields: Mapping[str, Any]) -> dict[str, Recipe]:
    """Every training by the name of its folder: the first stages, then the second ones that start from them."""
    trainings = {}
    for variant in dict.fromkeys(variant for variant, _ in ARMS.values()):
        fixed = {"data.shards": shards, "model.graph.variant": variant}
        trainings[f"stage1_{variant}"] = stage_recipe("moving_shapes_stage1", fields, fixed)
    for variant, contrastive in ARMS.values():
        fixed = {
            "data.shards": shards,
            "model.graph.variant": variant,
            "train.loss.contrastive": contrastive,
            "weights.initial": str(workdir / f"stage1_{variant}"),
        }
        trainings[_stage2_name(variant, contrastive)] = stage_recipe("moving_shapes_stage2", fields, fixed)
    return trainings


def _measure(checkpoint: Path, shards: str | Path) -> dict[str, Any]:
    return retrieval(checkpoint, shards, split=TEST_SPLIT, k_test=K_TEST, batch_size=BATCH).to_dict()


def _stage2_name(variant: str, contrastive: str) -> str:
    return f"stage2_{variant}_{contrastive}"
