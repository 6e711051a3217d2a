"""`stgt data make`."""

from experiments.commands.values import Figures, Folder


def data_make(
    *,
    out: Folder,  # folder for the clips, which go to train/ and test/
    num_train: int = 2400,  # training clips
    num_test: int = 200,  # test clips
    seed: int = 0,  # the same seed makes the same clips
) -> Figures:
    """Make the built-in data set moving_shapes: mp4 clips with captions."""
    from data_pipeline.moving_shapes import make_moving_shapes

    counts = make_moving_shapes(out, num_train=num_train, num_test=num_test, seed=seed)
    for split, count in counts.items():
        print(f"{out}/{split}: {count} clips and captions.csv")
    return counts
