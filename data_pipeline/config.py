"""How the loader turns a shard set into batches, as one frozen dataclass."""

from dataclasses import dataclass
from typing import Literal

from stgt_jax.checks import check, check_choices, check_not_negative


@dataclass(frozen=True)
class DataConfig:
    """The loader's options, in the order in which a clip meets them.

    The number of frames and their size are the model's: the functions of `data_pipeline.loader` take them as arguments.

    Raises:
      STGTError: an impossible value, named as `data.<option>`.
    """

    shards: str = ""  # folder of the shard set, as written by `stgt data build`
    train_frame_sampling: Literal["headtail", "uniform"] = "headtail"  # evaluation is always uniform
    crop_scale: tuple[float, float] = (0.5, 1.0)  # area of the random resized crop; (1.0, 1.0) is the centre crop
    flip: bool = True  # mirror half of the training clips; turn it off if captions distinguish left from right
    num_workers: int = 2  # worker processes of the training loader; 0 loads in the training process

    def __post_init__(self) -> None:
        check_choices("data", self)
        check(
            len(self.crop_scale) == 2 and 0.0 < self.crop_scale[0] <= self.crop_scale[1] <= 1.0,
            f"data.crop_scale={self.crop_scale} must be (lo, hi) with 0 < lo <= hi <= 1; (1.0, 1.0) is the centre crop",
        )
        check_not_negative("data", self, "num_workers")
