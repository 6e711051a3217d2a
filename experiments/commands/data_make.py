"""`stgt data make`."""

from typing import Literal

from experiments.commands.values import Figures, Folder


def data_make(
    *,
    out: Folder,  # folder for the clips, which go to a folder for each split
    dataset: Literal["moving_shapes", "crowded_shapes"] = "moving_shapes",  # crowded_shapes is harder
    num_train: int = 2400,  # training clips
    num_val: int = 200,  # validation clips; crowded_shapes has this split
    num_test: int = 200,  # test clips
    seed: int = 0,  # the same seed makes the same clips
) -> Figures:
    """Make a built-in data set: mp4 clips of coloured shapes, with captions and questions."""
    from data_pipeline.crowded_shapes import make_crowded_shapes
    from data_pipeline.moving_shapes import make_moving_shapes

    if dataset == "moving_shapes":
        counts = make_moving_shapes(out, num_train=num_train, num_test=num_test, seed=seed)
    else:
        counts = make_crowded_shapes(out, num_train=num_train, num_val=num_val, num_test=num_test, seed=seed)
    for split, count in counts.items():
        print(f"{out}/{split}: {count} clips and captions.csv")
    return counts
