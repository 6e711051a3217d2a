"""`stgt pretrain`."""

import re

from experiments.commands.processes import Processes
from experiments.commands.values import Figures, Folder, RecipeFields
from experiments.recipes import Recipe, get_recipe
from stgt_jax.errors import STGTError


def pretrain(
    recipe: str,  # name of the recipe; `stgt recipes` lists them
    *,
    workdir: Folder,  # folder for checkpoints, metrics and logs
    resume: bool = False,  # continue from the newest checkpoint in the workdir, if there is one
    allow_changes: bool = False,  # resume with other options, or start from weights of another graph threshold
    profile_steps: str = "",  # FIRST:LAST, trace these steps for TensorBoard's profiler; a start's first step compiles
    processes: Processes,
    fields: RecipeFields,
) -> Figures | None:
    """Train one stage.

    The second stage starts from the weights of the first: --weights.initial DIR, the workdir of the first. Several
    processes train together if each is started with the same command. With SLURM's srun, Open MPI and Cloud TPU slices
    each process finds its place itself; elsewhere give each --coordinator, --num-processes and --process-id.
    """
    return run_training(
        get_recipe(recipe, fields), workdir, resume=resume, allow_changes=allow_changes, profile_steps=profile_steps,
        processes=processes,
    )  # fmt: skip


def run_training(
    recipe: Recipe,
    workdir: str,
    *,
    profile_steps: str,
    processes: Processes,
    **options: bool,
) -> Figures | None:
    """Trains as one process of a run and prints the last figures; returns them in process 0, None in the others."""
    steps = _step_range(profile_steps) if profile_steps else None
    with processes.joined():
        import jax

        from experiments import pretrain

        figures = pretrain.pretrain(recipe, workdir, profile_steps=steps, **options)
        if jax.process_index() > 0:
            return None
    print("\n".join(f"{name} {value:.4g}" for name, value in figures.items()))
    return figures


def _step_range(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise STGTError(f"--profile-steps={text} is not FIRST:LAST with 1 <= FIRST <= LAST, such as 10:15")
    return int(found[1]), int(found[2])
