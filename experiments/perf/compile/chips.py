"""Published specifications of TPU chips.

The figures are from Google's pages https://docs.cloud.google.com/tpu/docs/v4 and likewise v5e, v5p, v6e and tpu7x (read
2026-11). The bandwidths of tpu7x are from its announcement (Ironwood, 2025); the links of v4, six of 50 GB/s, are from
"TPU v4: An Optically Reconfigurable Supercomputer" (ISCA 2023). Link bandwidths here are one way; the pages add both.
"""

import math
import re
from dataclasses import dataclass

from stgt_jax.checks import did_you_mean
from stgt_jax.errors import STGTError


@dataclass(frozen=True)
class Chip:
    """A chip with all its cores."""

    hbm_bytes: float
    hbm_bytes_per_second: float
    flops_per_second: float  # of bfloat16 matrix products
    ici_bytes_per_second: float  # over all links, one way


# Chips along each side of the largest possible slice. The compiler aborts the process if a slice is larger.
LARGEST = {"v4": (16, 16, 16), "v5e": (16, 16), "v5p": (16, 16, 24), "v6e": (16, 16), "tpu7x": (16, 16, 36)}

GIB = 2**30
CHIPS = {
    "v4": Chip(32 * GIB, 1200e9, 275e12, 300e9),
    "v5e": Chip(16 * GIB, 819e9, 197e12, 200e9),
    "v5p": Chip(95 * GIB, 2765e9, 459e12, 600e9),
    "v6e": Chip(32 * GIB, 1638e9, 918e12, 400e9),
    "tpu7x": Chip(192 * GIB, 7380e9, 2307e12, 600e9),
}


def parse_topology(name: str) -> tuple[str, int]:
    """Parses `v5e:16x16` to (a name of CHIPS, number of chips); raises STGTError if there is no such slice."""
    generation, _, sides = name.partition(":")
    if generation not in CHIPS:
        raise STGTError(f"--topology={name}: unknown TPU '{generation}'{did_you_mean(generation, CHIPS)}")
    largest = LARGEST[generation]
    form = f"{generation}:{'x'.join('ABC'[: len(largest)])}, at most {generation}:{'x'.join(map(str, largest))}"
    if not re.fullmatch(r"\d+(x\d+)*", sides) or sides.count("x") != len(largest) - 1:
        raise STGTError(f"--topology={name}: slices of this TPU are written {form}")
    chips = [int(side) for side in sides.split("x")]
    if any(side > most for side, most in zip(sorted(chips), largest, strict=True)):
        raise STGTError(f"--topology={name}: slices of this TPU are {form}; --num-slices takes several")
    return generation, math.prod(chips)
