"""Shards of the built-in data sets."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_pipeline.build import build_shards


def build_splits(
    clips: Path, shards: Path, splits: Iterable[str], *, num_kept_frames: int, resize: int, max_text_length: int
) -> dict[str, Any]:
    """Builds the shard set of a built-in data set from its folders; returns the counts of each split.

    Args:
      clips: folder of the data set, with a folder for each split.
      shards: folder of the shard set; what it holds is replaced.
      splits: names of the splits, the training split first, which makes the vocabulary.
      num_kept_frames: K.
      resize: pixels.
      max_text_length: tokens.

    Raises:
      DataError: the clips are missing, or a folder cannot be written to.
    """
    return {
        split: build_shards(
            clips / split / "captions.csv",
            shards,
            split=split,
            num_kept_frames=num_kept_frames,
            resize=resize,
            max_text_length=max_text_length,
            encoding="raw",  # these clips are small
            overwrite=True,
        ).to_dict()
        for split in splits
    }
