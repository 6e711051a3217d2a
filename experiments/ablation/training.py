"""Trains and measures one arm with one seed: the work of one process."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.crowded_shapes import sample_crowds
from experiments.ablation.arms import ARMS, FIRST_STAGE, RECIPES
from experiments.ablation.measure import measure
from experiments.pretrain import pretrain_step, stage_recipe
from experiments.recipe_fields import list_fields
from experiments.recipes import Recipe, get_recipe
from experiments.report import read_curve
from experiments.steps import Steps, write_json
from stgt_jax.train.run_lock import locked

NUM_KEPT_FRAMES = 12
IMAGE_SIZE = 64  # pixels, as clips are made and as models see them: the patches are those of the known tracks
CURVES = ("t2v_r1", "twin_accuracy")  # of the validations


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What the trainings of an ablation share."""

    workdir: Path  # of the data and of a folder for each training
    results: Path  # folder of a file for each arm and seed
    sizes: Mapping[str, Any]  # of the splits, as for `sample_crowds`
    fields: Mapping[str, Any]  # new values for fields of both recipes, by full name

    @property
    def shards(self) -> Path:
        """The shard set."""
        return self.workdir / "shards"

    def recipe(self, arm: str, seed: int) -> Recipe:
        """Returns the recipe of one training. Raises STGTError where it refuses a value."""
        fixed = {"data.shards": str(self.shards), "model.vision.image_size": IMAGE_SIZE, "train.seed": seed}
        fixed |= ARMS[arm].fields
        if ARMS[arm].stage == 2:
            fixed["weights.initial"] = str(self.folder(FIRST_STAGE, seed) / "run")
        return stage_recipe(RECIPES[ARMS[arm].stage], self.fields, fixed)

    def folder(self, arm: str, seed: int) -> Path:
        """The folder of one training."""
        return self.workdir / f"{arm}_{seed}"

    def result(self, arm: str, seed: int) -> Path:
        """The file of one training's figures."""
        return self.results / f"{arm}_{seed}.json"

    @property
    def settings(self) -> str:
        """A hash of all that figures depend on but the arm and the seed."""
        recipes = [list_fields(get_recipe(name, self.fields)) for name in RECIPES.values()]
        stated = json.dumps([recipes, dict(self.sizes), NUM_KEPT_FRAMES, IMAGE_SIZE], sort_keys=True)
        return hashlib.sha256(stated.encode()).hexdigest()[:16]


def train_and_measure(ablation: Ablation, arm: str, seed: int) -> None:
    """Trains one arm with one seed, or continues, and writes the file of its figures.

    Raises:
      STGTError: the recipe, the data or the folder do not fit.
    """
    folder, recipe = ablation.folder(arm, seed), ablation.recipe(arm, seed)
    with locked(folder):
        steps = Steps(folder, {"settings": ablation.settings, **ARMS[arm].fields})
        pretrain_step(steps, "training", recipe, folder / "run")
        crowds = sample_crowds(0, **ablation.sizes)["test"]
        figures = steps.run(
            "figures",
            "measuring",
            lambda: measure(
                folder / "run",
                ablation.shards,
                crowds,
                num_kept_frames=NUM_KEPT_FRAMES,
                sharpness=recipe.train.loss.csal_sharpness,
            ),
        )
    curve = [line for line in read_curve(folder / "run" / "metrics.jsonl") if f"validation/{CURVES[0]}" in line]
    content = {
        "arm": arm,
        "seed": seed,
        "settings": ablation.settings,
        "fields": dict(ARMS[arm].fields),
        "num_steps": recipe.train.num_steps,
        "minutes": round(steps.seconds["training"] / 60, 1),
        **figures,
        "curve": {"step": [line["step"] for line in curve]}
        | {name: [line[f"validation/{name}"] for line in curve] for name in CURVES},
    }
    write_json(ablation.result(arm, seed), content)
