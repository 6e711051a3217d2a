"""Timing of compiled programs: one run to warm up, then the median of several runs."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class Timing:
    """The measured time of a program."""

    seconds: float  # the median
    repeats: int  # runs that were measured; 1 if a run takes too long


def time_runs(run: Callable[[], Any], *, repeats: int, seconds_limit: float = math.inf) -> Timing:
    """Times `run`, which must return the arrays to wait for.

    Args:
      run: called once to warm up, then `repeats` times.
      repeats: at least 1.
      seconds_limit: if the warm-up takes longer, its time is the result.
    """
    warm_up = seconds_of(run)
    if warm_up > seconds_limit:
        return Timing(warm_up, 1)
    return Timing(statistics.median(seconds_of(run) for _ in range(repeats)), repeats)


def with_backward(apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Turns (differentiable, constant) -> output into a function that returns (output, gradients).

    The cotangent is the output itself: it costs nothing, and unlike ones it allows the compiler no simplification.
    """

    def forward_and_backward(differentiable: Any, constant: Any) -> tuple[Any, Any]:
        output, pull_back = jax.vjp(lambda x: apply(x, constant), differentiable)
        return output, pull_back(output)[0]

    return forward_and_backward


def seconds_of(run: Callable[[], Any]) -> float:
    """Returns the seconds from the start of a run until all the arrays that it returns are ready."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start
