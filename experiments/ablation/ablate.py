"""The ablation from the data to the tables."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.crowded_shapes import make_crowded_shapes
from data_pipeline.storage import local_path
from experiments.ablation.arms import ARMS, first_stages
from experiments.ablation.side_by_side import Task, run_side_by_side
from experiments.ablation.summary import format_ablation, read_ablation
from experiments.ablation.training import IMAGE_SIZE, NUM_KEPT_FRAMES, Ablation, train_and_measure
from experiments.made_shards import build_splits
from experiments.steps import Steps
from stgt_jax.checks import did_you_mean
from stgt_jax.errors import STGTError
from stgt_jax.train.run_lock import locked

MAX_TEXT_LENGTH = 32  # tokens; the longest caption has 22


def run_ablation(
    workdir: str | Path,
    results: str | Path,
    *,
    arms: Sequence[str],
    seeds: Sequence[int],
    sizes: Mapping[str, Any],
    num_processes: int,
    fields: Mapping[str, Any],
) -> dict[str, Any]:
    """Makes the data, trains and measures every arm with every seed that has no result yet, and prints the tables.

    Args:
      workdir: folder for the clips, the shards and the trainings.
      results: folder for a file of each arm and seed.
      arms: names of `ARMS`; none for all.
      seeds: of the trainings.
      sizes: clips of the splits, as for `sample_crowds`.
      num_processes: trainings side by side; 0 for one on each core.
      fields: new values for fields of both recipes, by full name.

    Returns:
      The contents of the results, by arm and seed.

    Raises:
      STGTError: an option is refused, a training failed, or the folder is in use or holds another ablation.
    """
    for name in arms:
        if name not in ARMS:
            raise STGTError(f"--arms: unknown arm '{name}'{did_you_mean(name, ARMS)}")
    ablation = Ablation(local_path(workdir), local_path(results), sizes, fields)
    units = [(first, second, seed) for seed in seeds for first, second in first_stages(list(arms or ARMS)).items()]
    for first, second, seed in units:  # refuses an option now rather than in a process
        for arm in (first, *second):
            ablation.recipe(arm, seed)
    with locked(ablation.workdir):
        make_data(ablation)
        tasks = [
            Task(
                f"{', '.join([first, *second])} with seed {seed}",
                functools.partial(_train_in_turn, ablation, (first, *second), seed),
                ablation.folder(first, seed) / "log.txt",
            )
            for first, second, seed in units
            if not all(ablation.result(arm, seed).exists() for arm in (first, *second))
        ]
        run_side_by_side(tasks, num_processes)
    found = read_ablation(ablation.results)
    print(format_ablation(found))
    return dict(found)


def _train_in_turn(ablation: Ablation, arms: Sequence[str], seed: int) -> None:
    """Trains a first stage and the second stages that start from it.

    Where results are kept without the trainings, the weights of the first stage are made once more.
    """
    for arm in arms:
        if arm == arms[0] or not ablation.result(arm, seed).exists():
            train_and_measure(ablation, arm, seed)


def make_data(ablation: Ablation) -> None:
    """Makes the clips and the shards, if they are not there."""
    clips = ablation.workdir / "clips"
    steps = Steps(ablation.workdir, dict(ablation.sizes))
    make = functools.partial(make_crowded_shapes, clips, image_size=IMAGE_SIZE, **ablation.sizes)
    steps.run("clips", "making clips", make, output=clips)
    sizes = {"num_kept_frames": NUM_KEPT_FRAMES, "resize": IMAGE_SIZE, "max_text_length": MAX_TEXT_LENGTH}
    build = functools.partial(build_splits, clips, ablation.shards, ("train", "val", "test"), **sizes)
    steps.run("shards", "building shards", build, output=ablation.shards)
