"""The options of `stgt bench graph-attention` and `stgt bench data`, in a module that does not import jax."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

from stgt_jax.checks import check
from stgt_jax.config import GraphImplementation


@dataclass(frozen=True)
class GraphAttentionSettings:
    """Sizes and repetitions; the defaults are the sizes of the published model, with a batch of one clip."""

    _: KW_ONLY
    frames: tuple[int, ...] = (4, 8, 16, 32, 64)  # numbers of frames of a clip to measure
    implementations: tuple[GraphImplementation, ...] = ()  # default: dense, banded and the device's kernel
    dtype: Literal["float32", "bfloat16"] | None = None  # default: float32 on CPUs, bfloat16 on accelerators
    width: int = 1408  # of all heads together
    num_heads: int = 16  # attention heads
    patches: int = 256  # patches of a frame
    batch: int = 1  # clips
    repeats: int = 5  # runs; the median counts
    seconds_limit: float = 60.0  # a run that takes longer is measured once
    block: bool = False  # measure the whole graph block instead of the operation alone

    def __post_init__(self) -> None:
        positive = ("width", "num_heads", "patches", "batch", "repeats", "seconds_limit")
        values = {"frames": min(self.frames, default=0)} | {name: getattr(self, name) for name in positive}
        for name, value in values.items():
            check(value > 0, f"--{name.replace('_', '-')}={value} must be greater than 0")
        check(self.width % self.num_heads == 0, f"--num-heads={self.num_heads} does not divide --width={self.width}")


@dataclass(frozen=True)
class DataSettings:
    """Options of `stgt bench data`.

    Raises:
      STGTError: a number that is too small.
    """

    captions: str = ""  # caption file of one's own videos, by default videos are made: 15 s of 596x336 at 30 frames/s
    num_frames: int = 8  # frames of a clip
    image_size: int = 224  # their side, pixels
    batch_size: int = 8  # clips
    seconds: float = 5.0  # of each measurement
    repeats: int = 3  # measurements of each reader; the median counts
    step_milliseconds: float = 200.0  # of the simulated train step, during which the CPU is idle
    step_batch_size: int = 32  # clips that such a step takes
    num_workers: int = 2  # worker processes that feed it
    memory_records: int = 0  # small records over which the loader's memory is watched; 0: none

    def __post_init__(self) -> None:
        numbers = ("num_frames", "image_size", "batch_size", "seconds", "repeats")
        for name in (*numbers, "step_milliseconds", "step_batch_size", "num_workers"):
            value = getattr(self, name)
            check(value > 0, f"--{name.replace('_', '-')}={value} must be greater than 0")
        records = self.memory_records
        check(records == 0 or records >= 1000, f"--memory-records={records} must be 0, or at least 1000")
