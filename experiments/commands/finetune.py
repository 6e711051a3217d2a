"""`stgt finetune`."""

from typing import Literal

from experiments.commands.pretrain import run_training
from experiments.commands.processes import Processes
from experiments.commands.values import Figures, Folder, RecipeFields
from experiments.recipes import get_recipe

Dataset = Literal[
    "msrvtt", "msvd", "didemo", "lsmdc", "msrvtt_caption", "msrvtt_qa", "msvd_qa", "moving_shapes_qa"
]  # fmt: skip


def finetune(
    dataset: Dataset,  # whose published settings are taken
    *,
    workdir: Folder,  # folder for checkpoints, metrics and logs
    resume: bool = False,  # continue from the newest checkpoint in the workdir, if there is one
    allow_changes: bool = False,  # resume with other options
    profile_steps: str = "",  # FIRST:LAST, trace these steps for TensorBoard's profiler; a start's first step compiles
    processes: Processes,
    fields: RecipeFields,
) -> Figures | None:
    """Fine-tune a pre-trained model on a public data set, for retrieval, captioning or questions.

    --weights.initial names the pre-trained model: a run, or what `stgt weights convert` wrote. After each pass over the
    captions the model is validated; the best checkpoint is named at the end. `stgt recipes finetune_DATASET` lists the
    settings. Several processes train together as with `stgt pretrain`.
    """
    figures = run_training(
        get_recipe(f"finetune_{dataset}", fields), workdir, resume=resume, allow_changes=allow_changes,
        allow_other_graph=True, profile_steps=profile_steps,
        processes=processes,
    )  # fmt: skip
    if figures is None:
        return None
    from stgt_jax.train.checkpoint import best_checkpoint

    best = str(best_checkpoint(workdir))
    print(f"best checkpoint: {best}")
    return {**figures, "best_checkpoint": best}
