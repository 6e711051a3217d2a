"""Which implementation runs: the kernel of the platform where it fits, else plain XLA; said once in the log."""

import functools
import logging
from types import ModuleType

import jax

from stgt_jax.config import GraphImplementation
from stgt_jax.errors import STGTError
from stgt_jax.ops.graph_attention import banded, pallas_gpu, pallas_tpu
from stgt_jax.ops.platform import target_platform

_LINEAR: dict[str, ModuleType] = {"banded": banded, "pallas_tpu": pallas_tpu, "pallas_gpu": pallas_gpu}
KERNELS: dict[str, GraphImplementation] = {"tpu": "pallas_tpu", "gpu": "pallas_gpu"}  # of a platform


def choose(implementation: str, query: jax.Array) -> ModuleType:
    """Returns the module that implements graph attention in memory linear in T.

    Args:
      implementation: of `GRAPH_IMPLEMENTATIONS`, but for "dense".
      query: [B, T, P, H, d].

    Raises:
      STGTError: the kernel asked for cannot take this size.
    """
    platform = target_platform()
    name = implementation
    if implementation == "auto":
        name = KERNELS.get(platform, "banded")
    unfit = _LINEAR[name].unfit(query) if name != "banded" else ""
    if unfit and implementation != "auto":
        raise STGTError(f"implementation='{implementation}' {unfit}; use 'auto' or 'banded'")
    name = "banded" if unfit else name
    _say(name, platform, unfit)
    return _LINEAR[name]


@functools.cache
def _say(name: str, platform: str, unfit: str) -> None:
    because = f" (the kernel of this platform {unfit})" if unfit else ""
    level = logging.WARNING if unfit else logging.INFO
    logging.getLogger(__name__).log(level, "graph attention on %s: %s%s", platform, name, because)
