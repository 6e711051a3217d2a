"""`stgt demo`."""

from dataclasses import dataclass

from experiments.commands.values import Figures, Folder, RecipeFields

WORKDIR = Folder("runs/demo")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Make clips, build shards, train two stages, measure, and draw a report.

    Started again, it continues after the last step it finished.
    """

    workdir: Folder = WORKDIR  # folder for everything the demo makes
    num_train: int = 2400  # training clips
    num_test: int = 200  # test clips
    fields: RecipeFields  # of both stages

    def run(self) -> Figures:
        from experiments.demo import run_demo

        return run_demo(**vars(self))
