"""`stgt data make`."""

from dataclasses import dataclass

from experiments.commands.values import Figures, Folder


@dataclass(frozen=True, kw_only=True)
class DataMake:
    """Make the built-in data set moving_shapes: mp4 clips with captions."""

    out: Folder  # folder for the clips; gets train/ and test/
    num_train: int = 2400  # training clips
    num_test: int = 200  # test clips
    seed: int = 0  # the same seed makes the same clips

    def run(self) -> Figures:
        from data_pipeline.moving_shapes import make_moving_shapes

        counts = make_moving_shapes(**vars(self))
        for split, count in counts.items():
            print(f"{self.out}/{split}: {count} clips and captions.csv")
        return counts
