"""The benchmarked device: its name, and its peak FLOP/s and bandwidth, measured in the same run."""

import datetime
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from experiments.perf.bench.timing import seconds_of

_CHAINED = 4  # runs that are enqueued together, to hide the dispatch time
_REPEATS = 5  # of which the fastest counts, since it is a peak


@dataclass(frozen=True)
class Peak:
    """The measured peaks of one device."""

    flops_per_second: float  # of a large square matrix product
    bytes_per_second: float  # of a + s * b on large vectors: two reads, one write


def describe_device(dtype: str, num_devices: int = 1) -> dict[str, Any]:
    """Returns the device's name, the number of devices, the version of jax, the dtype and the date."""
    device = jax.devices()[0]
    cores = f" ({os.cpu_count()} cores)" if device.platform == "cpu" else ""
    return {
        "device": device.device_kind + cores,
        "num_devices": num_devices,
        "jax": jax.__version__,
        "dtype": dtype,
        "date": datetime.datetime.now().astimezone().date().isoformat(),
    }


def describe_run(figures: Mapping[str, Any]) -> str:
    """Returns the device and its peak, as two lines for the head of a table."""
    device, peak = figures["device"], figures["peak"]
    return (
        f"{device['device']} x {device['num_devices']}, jax {device['jax']}, {device['dtype']}, {device['date']}\n"
        f"peak measured in this run: {peak['flops_per_second'] / 1e9:,.0f} GFLOP/s (square matrix product),"
        f" {peak['bytes_per_second'] / 1e9:,.1f} GB/s (a + s * b)"
    )


def measure_peak(dtype: str, *, matrix_size: int | None = None, vector_bytes: int | None = None) -> Peak:
    """Measures the peaks of the default device.

    Args:
      dtype: of the matrix product.
      matrix_size: rows and columns; the default keeps the device busy for less than a second.
      vector_bytes: size of each of the two vectors; the default is larger than any cache.
    """
    on_cpu = jax.default_backend() == "cpu"
    size = matrix_size or (2048 if on_cpu else 8192)
    length = (vector_bytes or 2 ** (28 if on_cpu else 30)) // 4
    # Scaled so that products have the same scale.
    matrix = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype)) * size**-0.5
    product = _fastest(lambda a, b: a @ b, matrix)
    triad = _fastest(lambda a, b: a + 0.5 * b, jnp.ones(length, jnp.float32))
    return Peak(2 * size**3 / product, 3 * 4 * length / triad)


def _fastest(operation: Callable[[jax.Array, jax.Array], jax.Array], second: jax.Array) -> float:
    """Returns the seconds of `operation`. Its first argument is a copy of `second`, overwritten by each result."""
    program = jax.jit(operation, donate_argnums=0)
    first = jnp.copy(second)

    def run() -> jax.Array:
        nonlocal first
        for _ in range(_CHAINED):
            first = program(first, second)
        return first

    jax.block_until_ready(run())
    return min(seconds_of(run) for _ in range(_REPEATS)) / _CHAINED
