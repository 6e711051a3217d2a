"""What the loader does with a shard set, as one frozen dataclass, checked where it is built.

The options stand in the order in which a clip meets them: its shard set, its frames, its crop, its flip.
"""

import difflib
from dataclasses import dataclass

from data_pipeline.errors import DataError

FRAME_SAMPLINGS = ("headtail", "uniform")


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise DataError(message)


def _did_you_mean(name: str, choices: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.4)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(choices)}"


@dataclass(frozen=True)
class DataConfig:
    """How clips of a shard set become batches.

    Raises:
      DataError: an option that can't work, named as `data.<option>`.
    """

    shards: str = ""  # shard set folder, as written by `stgt data build`
    num_frames: int = 8  # T
    image_size: int = 224  # pixels per side
    train_frame_sampling: str = "headtail"  # or "uniform"; evaluation is always uniform
    crop_scale: tuple[float, float] = (0.5, 1.0)  # area of the random resized crop; (1.0, 1.0) is the centre crop
    flip: bool = True  # mirror half of the clips; off where captions tell left from right
    num_workers: int = 2  # worker processes of the training loader; 0 loads in process

    def __post_init__(self) -> None:
        for option in ("num_frames", "image_size"):
            value = getattr(self, option)
            _check(value > 0, f"data.{option}={value} must be greater than 0")
        _check(
            self.train_frame_sampling in FRAME_SAMPLINGS,
            f"data.train_frame_sampling='{self.train_frame_sampling}' is not a choice;"
            f" {_did_you_mean(self.train_frame_sampling, FRAME_SAMPLINGS)}",
        )
        _check(
            len(self.crop_scale) == 2 and 0.0 < self.crop_scale[0] <= self.crop_scale[1] <= 1.0,
            f"data.crop_scale={self.crop_scale} must be (lo, hi) with 0 < lo <= hi <= 1; (1.0, 1.0) crops the centre",
        )
        _check(
            self.num_workers >= 0,
            f"data.num_workers={self.num_workers} must not be negative; 0 loads in the training process",
        )
