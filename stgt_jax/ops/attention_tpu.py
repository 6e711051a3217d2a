"""Attention among the tokens of a frame as one fused kernel, for TPUs (Pallas, Mosaic TPU).

A frame has a few hundred tokens, so all scores of a head fit into vector memory and never leave it. XLA would write and
read them several times, and JAX's flash attention needs sequences and heads padded to multiples of 128. Here a program
takes one frame with its heads side by side, the layout that the projections produce.
Letters: B clips, T frames, S tokens, H heads of width d.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from stgt_jax.ops import tpu
from stgt_jax.ops.platform import target_platform
from stgt_jax.ops.tpu import LANES, SUBLANES, product, round_up

_SCORES = 8  # arrays of the size of a head's scores that the compiler may hold at once


def unfit(query: jax.Array) -> str:
    """Why the kernels cannot take `query` [B, T, S, H, d] on the device in use; empty where they can."""
    return tpu.unfit(query, _vmem_bytes(query))


def _vmem_bytes(query: jax.Array) -> int:
    """Vector memory of the backward kernel, the larger one. Blocks count twice: one is loaded while another is used."""
    *_, length, heads, head_dim = query.shape
    rows = round_up(length, SUBLANES)
    blocks = rows * (8 * round_up(heads * head_dim, LANES) * query.dtype.itemsize + round_up(heads, LANES) * 4)
    return 2 * blocks + _SCORES * rows * round_up(length, LANES) * 4


@jax.custom_vjp
def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """softmax(query key^T / sqrt(d)) value, the softmax in float32: [B, T, S, H, d] each -> the same shape."""
    return _forward(query, key, value)[0]


def _forward(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Any]:
    heads = query.shape[3]
    out, log_sum_exp = _run(
        _forward_kernel, query, [_wide(x) for x in (query, key, value)], [query.dtype], [(heads, jnp.float32)]
    )
    return out.reshape(query.shape), (query, key, value, out, log_sum_exp)


def _backward(saved: Any, d_out: jax.Array) -> tuple[jax.Array, ...]:
    query, key, value, out, log_sum_exp = saved
    inputs = [*(_wide(x) for x in (query, key, value)), out, _wide(d_out), log_sum_exp]
    gradients = _run(_backward_kernel, query, inputs, [query.dtype] * 3)
    return tuple(x.reshape(query.shape) for x in gradients)


attention.defvjp(_forward, _backward)


def _wide(x: jax.Array) -> jax.Array:
    """[B, T, S, H, d] -> [B, T, S, H * d]."""
    return x.reshape(*x.shape[:3], -1)


def _run(
    kernel: Callable[..., None],
    query: jax.Array,
    inputs: Sequence[jax.Array],
    wide_outputs: Sequence[Any],
    outputs: Sequence[tuple[int, Any]] = (),
) -> Sequence[jax.Array]:
    """Runs `kernel(head_dim, *refs)` for each frame of arrays [B, T, S, width].

    Args:
      kernel: takes references to one frame of the inputs, then of the results.
      query: [B, T, S, H, d], for the sizes.
      inputs: arrays [B, T, S, width].
      wide_outputs: the dtypes of the results of width H * d, which come first.
      outputs: (width, dtype) of the other results.
    """
    batch, frames, length, heads, head_dim = query.shape
    results = [(heads * head_dim, dtype) for dtype in wide_outputs] + list(outputs)
    products = 2 if len(wide_outputs) == 1 else 5

    def frame(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, length, width), lambda b, t: (b, t, 0, 0))

    return pl.pallas_call(
        functools.partial(kernel, head_dim),
        grid=(batch, frames),
        in_specs=[frame(x.shape[-1]) for x in inputs],
        out_specs=[frame(width) for width, _ in results],
        out_shape=[jax.ShapeDtypeStruct((batch, frames, length, width), dtype) for width, dtype in results],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=tpu.vmem_limit(_vmem_bytes(query))
        ),
        cost_estimate=pl.CostEstimate(
            flops=products * 2 * batch * frames * heads * length**2 * head_dim,
            transcendentals=batch * frames * heads * length**2,
            bytes_accessed=(len(inputs) + len(wide_outputs)) * query.size * query.dtype.itemsize,
        ),
        interpret=target_platform() != "tpu",
    )(*inputs)


def _columns(head_dim: int, width: int) -> list[tuple[int, slice]]:
    """The columns of each head in [S, H * d]: [(head, columns)]."""
    return [(head, slice(head * head_dim, (head + 1) * head_dim)) for head in range(width // head_dim)]


def _forward_kernel(head_dim: int, *refs: jax.Ref) -> None:
    query_ref, key_ref, value_ref, out_ref, log_sum_exp_ref = refs
    for head, columns in _columns(head_dim, query_ref.shape[-1]):
        value = value_ref[:, columns]
        scores = product(query_ref[:, columns], key_ref[:, columns], (1, 1)) * head_dim**-0.5
        highest = scores.max(axis=-1, keepdims=True)
        probabilities = jnp.exp(scores - highest)
        total = probabilities.sum(axis=-1, keepdims=True)
        out = product(probabilities.astype(value.dtype), value, (1, 0)) / total
        out_ref[:, columns] = out.astype(out_ref.dtype)
        log_sum_exp_ref[:, head : head + 1] = highest + jnp.log(total)


def _backward_kernel(head_dim: int, *refs: jax.Ref) -> None:
    query_ref, key_ref, value_ref, out_ref, d_out_ref, log_sum_exp_ref, d_query_ref, d_key_ref, d_value_ref = refs
    for head, columns in _columns(head_dim, query_ref.shape[-1]):
        query, key, out, d_out = (ref[:, columns] for ref in (query_ref, key_ref, out_ref, d_out_ref))
        delta = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(axis=-1, keepdims=True)
        scores = product(query, key, (1, 1)) * head_dim**-0.5
        probabilities = jnp.exp(scores - log_sum_exp_ref[:, head : head + 1])
        d_scores = probabilities * (product(d_out, value_ref[:, columns], (1, 1)) - delta) * head_dim**-0.5
        d_scores = d_scores.astype(query.dtype)
        d_query_ref[:, columns] = product(d_scores, key, (1, 0)).astype(d_query_ref.dtype)
        d_key_ref[:, columns] = product(d_scores, query, (0, 0)).astype(d_key_ref.dtype)
        d_value_ref[:, columns] = product(probabilities.astype(query.dtype), d_out, (0, 0)).astype(d_value_ref.dtype)
