"""`stgt demo`."""

from experiments.commands.values import Figures, Folder, RecipeFields

WORKDIR = Folder("runs/demo")


def demo(
    *,
    workdir: Folder = WORKDIR,  # folder for everything the demo makes
    num_train: int = 2400,  # training clips
    num_test: int = 200,  # test clips
    fields: RecipeFields,  # of both stages
) -> Figures:
    """Make clips, build shards, train two stages, measure, and draw a report.

    Started again, it continues after the last step it finished.
    """
    from experiments.demo import run_demo

    return run_demo(workdir, num_train=num_train, num_test=num_test, fields=fields)
