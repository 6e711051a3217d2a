"""Writes the embedded data set `crowded_shapes`, as `moving_shapes` is written."""

from pathlib import Path

from data_pipeline.crowded_shapes.render import render
from data_pipeline.crowded_shapes.scenes import sample_crowds
from data_pipeline.moving_shapes.write import check_size, write_splits
from data_pipeline.storage import local_path


def make_crowded_shapes(
    out: str | Path,
    *,
    num_train: int,
    num_val: int,
    num_test: int,
    seed: int = 0,
    image_size: int = 64,
    num_frames: int = 24,
    progress: bool = True,
) -> dict[str, int]:
    """Writes OUT/train, OUT/val and OUT/test: clips 000000.mp4, ..., captions.csv and questions.csv.

    The columns are video, caption, group and video, question, answer. The clips of one group differ only in which of
    two like shapes does what. Several processes make large sets, so a script must call this under
    `if __name__ == "__main__":`.

    Returns:
      The number of clips written, by split.

    Raises:
      DataError: sizes that cannot work, more clips than can be held out, or `out` is not a folder.
    """
    check_size(image_size, num_frames)
    splits = sample_crowds(seed, num_train, num_val, num_test, image_size=image_size, num_frames=num_frames)
    write_splits(splits, render, local_path(out), progress=progress)
    return {split: len(scenes) for split, scenes in splits.items()}
