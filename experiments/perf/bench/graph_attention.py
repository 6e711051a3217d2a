"""Measures the time and memory of the implementations of graph attention for clips of several lengths.

Dense attention is quadratic in the number of frames T, the others are linear. Letters: B clips, T frames, P patches a
frame, N = T * P nodes, D width, d = D / heads.
"""

import dataclasses
import math
import re
import sys
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp

from experiments.perf.bench.device import Peak, describe_device, measure_peak
from experiments.perf.bench.graph_attention_figures import FORWARD, PASSES, Row, add_ratios, growth
from experiments.perf.bench.memory import free_memory, needed_memory
from experiments.perf.bench.settings import GraphAttentionSettings
from experiments.perf.bench.timing import time_runs, with_backward
from stgt_jax.config import GraphConfig, GraphImplementation
from stgt_jax.flops import graph_attention_flops, graph_block_flops
from stgt_jax.models.graph_transformer import GraphBlock
from stgt_jax.ops.graph_attention import graph_attention
from stgt_jax.ops.graph_attention.select import KERNELS
from stgt_jax.ops.platform import target_platform

SIM_THRESHOLD = 0.1
# Random normal nodes with mean m have a mean cosine similarity of m^2 / (1 + m^2): about half exceed the threshold.
NODE_MEAN = math.sqrt(SIM_THRESHOLD / (1 - SIM_THRESHOLD))


def bench_graph_attention(
    settings: GraphAttentionSettings, *, memory_limit: float | None = None, peak: Peak | None = None
) -> dict[str, Any]:
    """Measures every implementation at every T, the forward pass alone and with the backward pass.

    Args:
      settings: sizes and repetitions.
      memory_limit: bytes that a program may need; by default the free memory of the device.
      peak: of the device; measured by default.

    Returns:
      Figures for JSON: "device", "settings", "peak", "rows" (`add_ratios`) and "growth".
    """
    on_cpu = target_platform() == "cpu"
    dtype = settings.dtype or ("float32" if on_cpu else "bfloat16")
    implementations = settings.implementations or _default_implementations()
    peak = peak or measure_peak(dtype)
    rows = []
    for passes in PASSES:
        for frames in settings.frames:
            for implementation in implementations:
                print(f"{implementation}, T = {frames}, {passes} ...", file=sys.stderr, flush=True)
                case = _Case(settings, dtype, implementation, frames)
                rows.append(_measure(case, passes, peak, memory_limit))
    return {
        "device": describe_device(dtype),
        "settings": asdict(settings),
        "peak": asdict(peak),
        "rows": add_ratios(rows),
        "growth": growth(rows),
    }


@dataclass(frozen=True)
class _Case:
    """The operation or the block to measure, with one implementation at one T."""

    settings: GraphAttentionSettings
    dtype: str
    implementation: GraphImplementation
    frames: int

    def inputs(self, key: jax.Array) -> tuple[Any, Any]:
        """Returns the arguments of `apply`: (differentiated, constant)."""
        settings, dtype = self.settings, jnp.dtype(self.dtype)
        keys = jax.random.split(key, 4)
        if settings.block:
            shape = (settings.batch, self.frames, 1 + settings.patches, settings.width)
            tokens = (NODE_MEAN + jax.random.normal(keys[0], shape)).astype(dtype)
            return (self._block().init(keys[1], tokens, None, False), tokens), ()
        num_nodes = self.frames * settings.patches
        nodes = NODE_MEAN + jax.random.normal(keys[0], (settings.batch, num_nodes, settings.width))
        shape = (settings.batch, num_nodes, settings.num_heads, settings.width // settings.num_heads)
        return tuple(jax.random.normal(k, shape, dtype) for k in keys[1:]), nodes.astype(dtype)

    def apply(self, differentiable: Any, constant: Any) -> jax.Array:
        """Returns [B, N, heads, d], or for the block [B, T, 1 + P, D]."""
        if self.settings.block:
            params, tokens = differentiable
            return self._block().apply(params, tokens, None, False)[0]  # type: ignore[return-value]
        query, key, value = differentiable
        return graph_attention(query, key, value, constant, num_frames=self.frames, sim_threshold=SIM_THRESHOLD,
                               implementation=self.implementation)  # fmt: skip

    def flops(self, passes: str) -> int:
        """Returns the FLOPs of the model, which are the same for every implementation."""
        settings = self.settings
        count = graph_block_flops if settings.block else graph_attention_flops
        flops = count(batch=settings.batch, frames=self.frames, patches=settings.patches, width=settings.width)
        return flops.forward if passes == FORWARD else flops.total

    def _block(self) -> GraphBlock:
        config = GraphConfig(
            num_heads=self.settings.num_heads, sim_threshold=SIM_THRESHOLD, implementation=self.implementation
        )
        return GraphBlock(config, jnp.dtype(self.dtype))


def _measure(case: _Case, passes: str, peak: Peak, memory_limit: float | None) -> Row:
    """Compiles a case, and runs it if its memory fits on the device."""
    row = Row(case.implementation, case.frames, passes)
    function = case.apply if passes == FORWARD else with_backward(case.apply)
    try:
        compiled = jax.jit(function).lower(*jax.eval_shape(case.inputs, jax.random.key(0))).compile()
    except (ValueError, RuntimeError) as error:  # sizes that a kernel refuses; too little memory for the compiler
        return dataclasses.replace(row, note=_reason(error))
    memory = needed_memory(compiled)
    row = dataclasses.replace(row, temporary_bytes=memory.temporaries)
    limit = free_memory(jax.devices()[0]) if memory_limit is None else memory_limit
    if memory.total > limit:
        return dataclasses.replace(row, note=f"does not fit ({memory.total / 1e9:.3g} GB)")
    settings, inputs = case.settings, jax.jit(case.inputs)(jax.random.key(0))
    jax.block_until_ready(inputs)
    try:
        timing = time_runs(lambda: compiled(*inputs), repeats=settings.repeats, seconds_limit=settings.seconds_limit)
    except jax.errors.JaxRuntimeError as error:  # fragmented memory
        return dataclasses.replace(row, note=_reason(error))
    # Every implementation must read each argument and write each result at least once.
    moved = memory.arguments + memory.outputs
    return dataclasses.replace(
        row,
        seconds=timing.seconds,
        repeats=timing.repeats,
        peak_flops_share=case.flops(passes) / timing.seconds / peak.flops_per_second,
        peak_bytes_share=moved / timing.seconds / peak.bytes_per_second,
        note="one run only" if timing.repeats < settings.repeats else "",
    )


def _reason(error: Exception) -> str:
    """Returns why a program did not run, as a note for the table."""
    message = str(error).strip().partition("\n")[0]
    if "RESOURCE_EXHAUSTED" not in message:
        return f"does not run: {message[:200]}"
    # The TPU compiler writes "Used 31.2G of 15.5G hbm".
    used = re.search(r"Used ([\d.]+)G of", message)
    return f"does not fit ({used[1]} GB)" if used else "does not fit"


def _default_implementations() -> tuple[GraphImplementation, ...]:
    kernel = KERNELS.get(target_platform())
    return ("dense", "banded", kernel) if kernel else ("dense", "banded")
