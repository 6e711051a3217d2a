"""`stgt demo`."""

from dataclasses import KW_ONLY, dataclass

from experiments.commands.values import Figures, Folder, RecipeFields

WORKDIR = Folder("runs/demo")


@dataclass(frozen=True)
class Demo:
    """Make clips, build shards, train two stages, measure, and draw a report.

    Started again, it continues after the last step it finished.
    """

    _: KW_ONLY
    workdir: Folder = WORKDIR  # folder for everything the demo makes
    num_train: int = 2400  # training clips
    num_test: int = 200  # test clips
    fields: RecipeFields  # of both stages

    def run(self) -> Figures:
        """Prints the figures of the last step."""
        from experiments.demo import run_demo

        return run_demo(**vars(self))
