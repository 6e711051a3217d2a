"""`stgt ablate`."""

from dataclasses import dataclass

from experiments.commands.values import Figures, Folder, RecipeFields


@dataclass(frozen=True, kw_only=True)
class Ablate:
    """Train and compare four models: no graph, unweighted graph, full, full with CSAL.

    Started again, it continues after the last step it finished.
    """

    workdir: Folder  # folder for the trainings; `stgt report` shows the table if this is WORKDIR/ablation of a demo
    shards: str  # folder of a shard set of moving_shapes
    fields: RecipeFields  # of both stages

    def run(self) -> Figures:
        from experiments.ablate import run_ablation

        return run_ablation(**vars(self))
