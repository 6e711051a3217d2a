"""Graph attention over the blocks of neighbouring frames, in plain XLA: any device, any size, memory linear in T.

A loop over frames attends to one window at a time: the frame before, the frame itself and the one after. Only one
window's scores are in memory. The backward pass computes them again from the saved log-sum-exp.
Letters: as in `implementation`; K nodes of a window.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from stgt_jax.ops.graph_attention.dropout import keep_scale
from stgt_jax.ops.graph_attention.graph import NO_EDGE
from stgt_jax.ops.graph_attention.implementation import Gradients, Inputs, Output
from stgt_jax.ops.precision import precision_of


def unfit(query: jax.Array) -> str:
    """See `Implementation`: empty, as it takes every size on every device."""
    return ""


def forward(inputs: Inputs) -> Output:
    """See `Implementation`."""
    query, key, value = map(_frames_first, (inputs.query, inputs.key, inputs.value))
    weights = rearrange(inputs.weights, "b t w p k -> t b 1 p (w k)")

    def attend(carry: None, window: _Window) -> tuple[None, tuple[jax.Array, jax.Array]]:
        scores = _scores(query[window.frame], window.keys(key), window.graph(weights))
        highest = scores.max(axis=-1, keepdims=True)
        has_edge = highest > NO_EDGE
        probabilities = jnp.exp(scores - highest)  # [B, H, P, K], not yet divided by their sum
        total = probabilities.sum(axis=-1, keepdims=True)
        log_sum_exp = jnp.where(has_edge, highest + jnp.log(total), 0.0)
        if inputs.dropout_rate > 0.0:
            probabilities *= window.keep_scale(inputs, probabilities.shape)
        out = _product("bhpk,bhkd->bhpd", probabilities.astype(value.dtype), window.keys(value))
        out = jnp.where(has_edge, out / total, 0.0)
        return None, (out.astype(query.dtype), log_sum_exp)

    out, log_sum_exp = _each_frame(attend, None, len(query), len(key))[1]
    return Output(_frames_second(out), rearrange(log_sum_exp, "t b h p 1 -> b t p h"))


def backward(inputs: Inputs, output: Output, d_out: jax.Array) -> Gradients:
    """See `Implementation`."""
    delta = (output.out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(axis=-1)  # [B, T, P, H]
    log_sum_exp, delta = (rearrange(x, "b t p h -> t b h p 1") for x in (output.log_sum_exp, delta))
    query, key, value, d_out = map(_frames_first, (inputs.query, inputs.key, inputs.value, d_out))
    weights = rearrange(inputs.weights, "b t w p k -> t b 1 p (w k)")
    dtype = query.dtype

    def attend(carry: Any, window: _Window) -> tuple[Any, jax.Array]:
        frame, graph = window.frame, window.graph(weights)
        probabilities = jnp.exp(_scores(query[frame], window.keys(key), graph) - log_sum_exp[frame])
        kept, d_probabilities = probabilities, _product("bhpd,bhkd->bhpk", d_out[frame], window.keys(value))
        if inputs.dropout_rate > 0.0:
            scale = window.keep_scale(inputs, probabilities.shape)
            kept, d_probabilities = kept * scale, d_probabilities * scale
        d_scores = probabilities * (d_probabilities - delta[frame]) * (graph * query.shape[-1] ** -0.5)
        d_scores, kept = d_scores.astype(dtype), kept.astype(dtype)
        d_query = _product("bhpk,bhkd->bhpd", d_scores, window.keys(key)).astype(dtype)
        d_key = window.add(carry[0], _product("bhpk,bhpd->bhkd", d_scores, query[frame]))
        d_value = window.add(carry[1], _product("bhpk,bhpd->bhkd", kept, d_out[frame]))
        return (d_key, d_value), d_query

    zeros = jnp.zeros(key.shape, jnp.float32)
    (d_key, d_value), d_query = _each_frame(attend, (zeros, zeros), len(query), len(key))
    return Gradients(*(_frames_second(x.astype(dtype)) for x in (d_query, d_key, d_value)))


def _frames_first(x: jax.Array) -> jax.Array:
    return rearrange(x, "b t p h d -> t b h p d")


def _frames_second(x: jax.Array) -> jax.Array:
    return rearrange(x, "t b h p d -> b t p h d")


def _product(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    precision = precision_of(left.dtype)
    return jnp.einsum(equation, left, right, precision=precision, preferred_element_type=jnp.float32)


def _scores(query: jax.Array, key: jax.Array, graph: jax.Array) -> jax.Array:
    """[B, H, P, d], [B, H, K, d], weights [B, 1, P, K] -> [B, H, P, K] float32."""
    scores = _product("bhpd,bhkd->bhpk", query, key) * (graph * query.shape[-1] ** -0.5)
    return jnp.where(graph != 0, scores, NO_EDGE)


@dataclasses.dataclass(frozen=True)
class _Window:
    """The key frames that a frame attends to: three, or fewer at the ends of a clip."""

    frame: jax.Array | int  # the frame that attends
    first: jax.Array | int  # the first key frame, as an index into Tk
    num_frames: int  # the number of key frames
    block: int  # the first of them, as an index into the three blocks of the weights

    def keys(self, x: jax.Array) -> jax.Array:
        """[Tk, B, H, P, d] -> [B, H, K, d]."""
        return rearrange(jax.lax.dynamic_slice_in_dim(x, self.first, self.num_frames), "t b h p d -> b h (t p) d")

    def graph(self, weights: jax.Array) -> jax.Array:
        """[T, B, 1, P, 3P] -> [B, 1, P, K], the same for every head."""
        nodes = weights.shape[-2]
        return weights[self.frame][..., self.block * nodes : (self.block + self.num_frames) * nodes]

    def keep_scale(self, inputs: Inputs, shape: tuple[int, ...]) -> jax.Array:
        """See `dropout.keep_scale`, for probabilities of shape [B, H, P, K]."""
        clip, head, query, key = jnp.ogrid[tuple(slice(size) for size in shape)]
        query = query + self.frame * shape[2]
        key = key + (self.frame + self.block - 1) * shape[2]
        return keep_scale(inputs.dropout, clip, head, query, key, inputs.dropout_rate)

    def add(self, total: jax.Array, part: jax.Array) -> jax.Array:
        """Adds [B, H, K, d] to these key frames of [Tk, B, H, P, d]."""
        part = rearrange(part, "b h (t p) d -> t b h p d", t=self.num_frames)
        before = jax.lax.dynamic_slice_in_dim(total, self.first, self.num_frames)
        return jax.lax.dynamic_update_slice_in_dim(total, before + part, self.first, axis=0)


def _each_frame(
    attend: Callable[[Any, _Window], tuple[Any, Any]], carry: Any, num_frames: int, num_key_frames: int
) -> tuple[Any, Any]:
    """Calls `attend` with every frame's window in turn; returns the last carry and the stacked outputs.

    The first and the last window of a clip hold two frames, so that there are 3T - 2 blocks in all. The windows between
    them share one loop.
    """
    beyond = (num_key_frames - num_frames) // 2
    outs = []
    if not beyond:
        carry, out = attend(carry, _Window(0, 0, min(2, num_frames), 1))
        outs.append(jax.tree.map(lambda x: x[None], out))
    whole = jnp.arange(1 - beyond, num_frames - 1 + beyond)
    if whole.size:
        carry, out = jax.lax.scan(lambda c, t: attend(c, _Window(t, t - 1 + beyond, 3, 0)), carry, whole)
        outs.append(out)
    if not beyond and num_frames > 1:
        carry, out = attend(carry, _Window(num_frames - 1, num_frames - 2, 2, 0))
        outs.append(jax.tree.map(lambda x: x[None], out))
    return carry, jax.tree.map(lambda *x: jnp.concatenate(x), *outs)
