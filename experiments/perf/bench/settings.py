"""What `stgt bench graph-attention` measures: its options, apart from the measuring, which needs jax."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

from stgt_jax.config import GraphImplementation
from stgt_jax.errors import STGTError


@dataclass(frozen=True)
class GraphAttentionSettings:
    """Sizes and repetitions; the defaults are the published model's sizes, one clip at a time."""

    _: KW_ONLY
    frames: tuple[int, ...] = (4, 8, 16, 32, 64)  # frames of a clip, each number measured
    implementations: tuple[GraphImplementation, ...] = ()  # without it: dense, banded and the device's kernel
    dtype: Literal["float32", "bfloat16"] | None = None  # without it: float32 on CPUs, bfloat16 on accelerators
    width: int = 1408  # of all heads together
    num_heads: int = 16  # attention heads
    patches: int = 256  # patches of a frame
    batch: int = 1  # clips
    repeats: int = 5  # runs, of which the median counts
    seconds_limit: float = 60.0  # a run that takes longer is measured once
    block: bool = False  # measure the whole graph block, not the operation alone

    def __post_init__(self) -> None:
        numbers = {"frames": min(self.frames, default=0)}
        for name in ("width", "num_heads", "patches", "batch", "repeats", "seconds_limit"):
            numbers[name] = getattr(self, name)
        for name, value in numbers.items():
            if value <= 0:
                raise STGTError(f"--{name.replace('_', '-')}={value} must be greater than 0")
        if self.width % self.num_heads:
            raise STGTError(f"--num-heads={self.num_heads} does not divide --width={self.width}")
