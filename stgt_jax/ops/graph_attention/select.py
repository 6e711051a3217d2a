"""Chooses the implementation: the kernel of the platform where it fits, else plain XLA. The log says it once."""

import functools
import logging

import jax

from stgt_jax.config import GraphImplementation
from stgt_jax.errors import STGTError
from stgt_jax.ops.graph_attention import banded, pallas_gpu, pallas_tpu
from stgt_jax.ops.graph_attention.implementation import Implementation
from stgt_jax.ops.platform import target_platform

_IMPLEMENTATIONS: dict[str, Implementation] = {"banded": banded, "pallas_tpu": pallas_tpu, "pallas_gpu": pallas_gpu}
KERNELS: dict[str, GraphImplementation] = {"tpu": "pallas_tpu", "gpu": "pallas_gpu"}  # by platform


def choose(implementation: str, query: jax.Array) -> Implementation:
    """Chooses an implementation in memory linear in T.

    Args:
      implementation: one of `GraphImplementation`, except "dense".
      query: [B, T, P, H, d].

    Raises:
      STGTError: the kernel asked for cannot take this size.
    """
    platform = target_platform()
    name = implementation
    if implementation == "auto":
        name = KERNELS.get(platform, "banded")
    unfit = _IMPLEMENTATIONS[name].unfit(query)
    if unfit and implementation != "auto":
        raise STGTError(f"implementation='{implementation}' {unfit}; use 'auto' or 'banded'")
    name = "banded" if unfit else name
    _log_once(name, platform, unfit)
    return _IMPLEMENTATIONS[name]


@functools.cache
def _log_once(name: str, platform: str, unfit: str) -> None:
    because = f" (the kernel of this platform {unfit})" if unfit else ""
    level = logging.WARNING if unfit else logging.INFO
    logging.getLogger(__name__).log(level, "graph attention on %s: %s%s", platform, name, because)
