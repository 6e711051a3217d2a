"""How a time is measured: programs compiled ahead, a run to warm up, then the median of several."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class Timing:
    """What runs of one program took."""

    seconds: float  # the median
    repeats: int  # runs measured; fewer than asked for where one takes too long


def time_runs(run: Callable[[], Any], *, repeats: int, seconds_limit: float = math.inf) -> Timing:
    """Times `run`, which returns the arrays it waits for.

    Args:
      run: called once to warm up, then `repeats` times.
      repeats: at least 1.
      seconds_limit: a warm-up that takes longer is itself the measurement, and the only one.
    """
    warm_up = seconds_of(run)
    if warm_up > seconds_limit:
        return Timing(warm_up, 1)
    return Timing(statistics.median(seconds_of(run) for _ in range(repeats)), repeats)


def with_backward(apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Makes (differentiable, constant) -> output into the function of the same arguments -> (output, gradients).

    The output serves as its own cotangent, which costs nothing and, unlike ones, lets the compiler simplify nothing.
    """

    def forward_and_backward(differentiable: Any, constant: Any) -> tuple[Any, Any]:
        output, pull_back = jax.vjp(lambda x: apply(x, constant), differentiable)
        return output, pull_back(output)[0]

    return forward_and_backward


def seconds_of(run: Callable[[], Any]) -> float:
    """Times a single run, from its start to the last of the arrays it returns."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start
