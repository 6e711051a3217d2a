"""`stgt ablate`."""

from experiments.commands.values import Figures, Folder, RecipeFields


def ablate(
    *,
    workdir: Folder,  # folder for the trainings; `stgt report` shows the table if this is WORKDIR/ablation of a demo
    shards: str,  # folder of a shard set of moving_shapes
    fields: RecipeFields,  # of both stages
) -> Figures:
    """Train and compare four models: no graph, unweighted graph, full, full with CSAL.

    Started again, it continues after the last step it finished.
    """
    from experiments.ablate import run_ablation

    return run_ablation(workdir, shards, fields=fields)
