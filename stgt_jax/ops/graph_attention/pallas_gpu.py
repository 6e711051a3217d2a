"""Graph attention in Triton kernels, for NVIDIA GPUs: scores never leave the chip, and memory is linear in T.

A program owns a tile of one head's query nodes and walks over the key tiles of the frame before, its own and the one
after, with the running softmax of flash attention. The gradient of the queries walks the same way; those of keys and
values the other way round, each program owning a tile of key nodes. Every sum stays inside one program, so results are
the same bits in every run.

Triton's arrays have sides of powers of two. Heads of 88 would be padded to 128, wasting 31% of every product; a tile
[nodes, d] is instead a tuple of chunks along d, 64 + 32 then.

Letters: T frames that attend, Tk = T, or T + 2 with a neighbour beyond each end; P nodes a frame; H heads of d.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from stgt_jax.ops.graph_attention.dropout import keep_scale
from stgt_jax.ops.graph_attention.graph import NO_EDGE
from stgt_jax.ops.platform import target_platform, unfit_gpu

# Scores are in units of log(2) inside the kernels: exp2 is one instruction, exp is several.
_LOG2_E = math.log2(math.e)

_MIN_SIDE = 16  # of what tensor cores multiply
_MAX_HEAD_DIM = 128
# Larger tiles read the others less often. With 128 nodes of 88 in bfloat16 no kernel spills registers on Hopper (246 of
# 255 are used; a few with dropout), and shared memory of 113 KiB suffices, of 89 KiB on Ampere and Ada.
_MAX_TILE_BYTES = 128 * 96 * 2
_NUM_WARPS = 8
_NUM_STAGES = 2
# Products of float32 are full ones, outside the tensor cores, and take whole rows into registers: in larger tiles, and
# for heads of more than 112, they spill by the kilobyte. Larger tiles also need more shared memory than Ada has.
_FLOAT32_SIDE = 32
_FLOAT32_NUM_WARPS = 4

_Chunks = tuple[jax.Array, ...]  # of an array [nodes, d]
_Operand = tuple[Any, pl.BlockSpec]  # an array, or the shape of a result, and what of it a program sees


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What a kernel knows when it is traced."""

    own: int  # nodes of the tile that a program owns
    other: int  # nodes of the tiles that it walks over
    beyond: int  # key frames before the first frame that attends: 0 or 1
    num_warps: int
    patches: int  # P, without padding
    head_dim: int
    dropout_rate: float

    @classmethod
    def of(cls, query: jax.Array, key: jax.Array, dropout_rate: float) -> "_Plan":
        """For a query [B, T, P, H, d] and a key [B, Tk, P, H, d]."""
        patches, _, head_dim = query.shape[2:]
        side = max(_MIN_SIDE, pl.next_power_of_2(patches))
        if query.dtype == jnp.float32:
            own = other = min(_FLOAT32_SIDE, side)
            num_warps = _FLOAT32_NUM_WARPS
        else:
            fitting = _MAX_TILE_BYTES // (_chunks(head_dim)[-1].stop * query.dtype.itemsize)
            own = min(128, _power_of_two_up_to(fitting), side)
            other, num_warps = max(_MIN_SIDE, own // 2), _NUM_WARPS
        beyond = (key.shape[1] - query.shape[1]) // 2
        return cls(own, other, beyond, num_warps, patches, head_dim, dropout_rate)


def unfit(query: jax.Array) -> str:
    """Why the kernels cannot take a query [B, T, P, H, d], to follow "implementation='pallas_gpu' "; "" if they can."""
    if query.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        return f"takes no {query.dtype}"
    if query.shape[-1] > _MAX_HEAD_DIM:
        return f"has no tile for heads of {query.shape[-1]}, which is more than {_MAX_HEAD_DIM}"
    return unfit_gpu()


def forward(
    query: jax.Array, key: jax.Array, value: jax.Array, weights: jax.Array, dropout: jax.Array, dropout_rate: float
) -> tuple[jax.Array, jax.Array]:
    """As `banded.forward`, which says the shapes."""
    plan = _Plan.of(query, key, dropout_rate)
    query, key, value = (_pad(plan, x, 2) for x in (query, key, value))
    weights = _pad(plan, _compact(weights, query.dtype), 3, 4)
    batch, num_frames, nodes, heads, _ = query.shape
    scalars = jax.ShapeDtypeStruct((batch, num_frames, heads, nodes), jnp.float32)
    out, log_sum_exp = _launch(
        _forward_kernel,
        plan,
        [_tile(plan, query), _clip(key), _clip(value), _query_weights(plan, weights), _dropout(dropout)],
        [_tile(plan, query), _scalar_tile(plan, scalars)],
    )
    return out[:, :, : plan.patches], rearrange(log_sum_exp, "b t h p -> b t p h")[:, :, : plan.patches]


def backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    weights: jax.Array,
    dropout: jax.Array,
    out: jax.Array,
    log_sum_exp: jax.Array,
    d_out: jax.Array,
    dropout_rate: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `banded.backward`, which says the shapes."""
    plan = _Plan.of(query, key, dropout_rate)
    delta = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(axis=-1)  # [B, T, P, H]
    scalars = [_pad(plan, rearrange(x, "b t p h -> b t h p"), 3) for x in (log_sum_exp * _LOG2_E, delta)]
    query, key, value, d_out = (_pad(plan, x, 2) for x in (query, key, value, d_out))
    weights = _pad(plan, _compact(weights, query.dtype), 3, 4)

    own = [_tile(plan, query), _tile(plan, d_out), *(_scalar_tile(plan, x) for x in scalars)]
    others = [_clip(key), _clip(value), _query_weights(plan, weights), _dropout(dropout)]
    d_query = _launch(_d_query_kernel, plan, own + others, [_tile(plan, query)])

    own = [_tile(plan, key), _tile(plan, value)]
    others = [_clip(query), _clip(d_out), *map(_scalar_clip, scalars), _key_weights(plan, weights), _dropout(dropout)]
    d_key_value = _launch(_d_key_value_kernel, plan, own + others, own)
    return tuple(x[:, :, : plan.patches] for x in (*d_query, *d_key_value))  # type: ignore[return-value]


def _compact(weights: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Weights for products of 16 bits take 16 bits as well.

    They are multiples of 2^-20 and at most 1. float16 makes none of them zero, and has 3 bits more than bfloat16.
    """
    return weights if dtype == jnp.float32 else weights.astype(jnp.float16)


def _pad(plan: _Plan, x: jax.Array, *axes: int) -> jax.Array:
    """Appends nodes without edges, so that tiles divide them."""
    return jnp.pad(x, [(0, -size % plan.own if axis in axes else 0) for axis, size in enumerate(x.shape)])


def _launch(kernel: Callable, plan: _Plan, operands: list[_Operand], results: list[_Operand]) -> list[jax.Array]:
    """Runs a program for every tile of the first result, [B, frames, nodes, H, d]."""
    batch, frames, nodes, heads, _ = results[0][0].shape
    return pl.pallas_call(
        functools.partial(kernel, plan),
        # The first index runs fastest: the heads of a tile share its weights, and find them in the cache together.
        grid=(heads, nodes // plan.own, frames, batch),
        in_specs=[spec for _, spec in operands],
        out_specs=[spec for _, spec in results],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in results],
        compiler_params=plgpu.CompilerParams(num_warps=plan.num_warps, num_stages=_NUM_STAGES),
        interpret=target_platform() != "gpu",
    )(*(x for x, _ in operands))


def _tile(plan: _Plan, x: jax.Array) -> _Operand:
    """Of [B, frames, nodes, H, d] the program's own [own, d]."""
    shape = (None, None, plan.own, None, _chunks(x.shape[-1])[-1].stop)
    return x, pl.BlockSpec(shape, lambda head, tile, frame, clip: (clip, frame, tile, head, 0))


def _clip(x: jax.Array) -> _Operand:
    """Of [B, frames, nodes, H, d] all [frames, nodes, d] of its clip and head."""
    _, frames, nodes, _, head_dim = x.shape
    shape = (None, frames, nodes, None, _chunks(head_dim)[-1].stop)
    return x, pl.BlockSpec(shape, lambda head, tile, frame, clip: (clip, 0, 0, head, 0))


def _scalar_tile(plan: _Plan, x: jax.Array | jax.ShapeDtypeStruct) -> _Operand:
    """Of [B, frames, H, nodes] the program's own [own]."""
    return x, pl.BlockSpec((None, None, None, plan.own), lambda head, tile, frame, clip: (clip, frame, head, tile))


def _scalar_clip(x: jax.Array) -> _Operand:
    """Of [B, frames, H, nodes] all [frames, nodes] of its clip and head."""
    _, frames, _, nodes = x.shape
    return x, pl.BlockSpec((None, frames, None, nodes), lambda head, tile, frame, clip: (clip, 0, head, 0))


def _query_weights(plan: _Plan, weights: jax.Array) -> _Operand:
    """[3, own, nodes], the edges from its own query nodes."""
    shape = (None, None, 3, plan.own, weights.shape[-1])
    return weights, pl.BlockSpec(shape, lambda head, tile, frame, clip: (clip, frame, 0, tile, 0))


def _key_weights(plan: _Plan, weights: jax.Array) -> _Operand:
    """[T, 3, own, nodes], the edges of every frame and block to its own key nodes, were they of that block.

    Transposed once for all heads, and not in the kernel: Triton loads ahead only what is used as it is stored.
    """
    shape = (None, *weights.shape[1:3], plan.own, weights.shape[-1])
    return weights.mT, pl.BlockSpec(shape, lambda head, tile, frame, clip: (clip, 0, 0, tile, 0))


def _dropout(dropout: jax.Array) -> _Operand:
    return dropout, pl.BlockSpec()


def _forward_kernel(plan, query_ref, key_ref, value_ref, weights_ref, dropout_ref, out_ref, log_sum_exp_ref):
    frame = pl.program_id(2)
    queries, keep_scale_of = _own_nodes(plan, frame), _dropping(plan, dropout_ref)
    query = _load(plan, query_ref, slice(None))

    def attend(key_frame, rows, carry):
        out, highest, total = carry
        key, value = (_load(plan, ref, key_frame + plan.beyond, rows) for ref in (key_ref, value_ref))
        scores = _scores(plan, query, key, weights_ref[key_frame - frame + 1, :, rows])
        before, highest = highest, jnp.maximum(highest, scores.max(axis=1))
        shrink, probabilities = jnp.exp2(before - highest), jnp.exp2(scores - highest[:, None])
        total = total * shrink + probabilities.sum(axis=1)
        kept = probabilities * keep_scale_of(queries[:, None], _nodes(plan, key_frame, rows)[None])
        return _add([x * shrink[:, None] for x in out], kept, value), highest, total

    start = _zeros(plan), jnp.full(plan.own, NO_EDGE, jnp.float32), jnp.zeros(plan.own, jnp.float32)
    out, highest, total = _walk(plan, attend, start, frame, key_ref.shape, plan.beyond)
    has_edge = highest > NO_EDGE
    _store(plan, out_ref, [jnp.where(has_edge[:, None], x / total[:, None], 0.0) for x in out])
    log_sum_exp_ref[...] = jnp.where(has_edge, highest / _LOG2_E + jnp.log(total), 0.0)


def _d_query_kernel(
    plan, query_ref, d_out_ref, log_sum_exp_ref, delta_ref, key_ref, value_ref, weights_ref, dropout_ref, d_query_ref
):
    frame = pl.program_id(2)
    queries, keep_scale_of = _own_nodes(plan, frame), _dropping(plan, dropout_ref)
    query, d_out = (_load(plan, ref, slice(None)) for ref in (query_ref, d_out_ref))
    log_sum_exp, delta = (ref[...][:, None] for ref in (log_sum_exp_ref, delta_ref))

    def attend(key_frame, rows, d_query):
        key, value = (_load(plan, ref, key_frame + plan.beyond, rows) for ref in (key_ref, value_ref))
        weights = weights_ref[key_frame - frame + 1, :, rows]
        probabilities = jnp.exp2(_scores(plan, query, key, weights) - log_sum_exp)
        scale = keep_scale_of(queries[:, None], _nodes(plan, key_frame, rows)[None])
        return _add(d_query, probabilities * (_product(d_out, value) * scale - delta) * weights, key)

    d_query = _walk(plan, attend, _zeros(plan), frame, key_ref.shape, plan.beyond)
    _store(plan, d_query_ref, [x * plan.head_dim**-0.5 for x in d_query])


def _d_key_value_kernel(
    plan,
    key_ref,
    value_ref,
    query_ref,
    d_out_ref,
    log_sum_exp_ref,
    delta_ref,
    weights_ref,
    dropout_ref,
    d_key_ref,
    d_value_ref,
):
    """Scores are [keys, queries] here: both sums then take their left factor from registers, as it was computed."""
    frame = pl.program_id(2) - plan.beyond
    keys, keep_scale_of = _own_nodes(plan, frame), _dropping(plan, dropout_ref)
    key, value = (_load(plan, ref, slice(None)) for ref in (key_ref, value_ref))

    def attend(query_frame, rows, carry):
        d_key, d_value = carry
        query, d_out = (_load(plan, ref, query_frame, rows) for ref in (query_ref, d_out_ref))
        log_sum_exp, delta = (ref[query_frame, rows][None] for ref in (log_sum_exp_ref, delta_ref))
        weights = weights_ref[query_frame, frame - query_frame + 1, :, rows]
        probabilities = jnp.exp2(_scores(plan, key, query, weights) - log_sum_exp)
        scale = keep_scale_of(_nodes(plan, query_frame, rows)[None], keys[:, None])
        d_value = _add(d_value, probabilities * scale, d_out)
        d_key = _add(d_key, probabilities * (_product(value, d_out) * scale - delta) * weights, query)
        return d_key, d_value

    d_key, d_value = _walk(plan, attend, (_zeros(plan), _zeros(plan)), frame, query_ref.shape, 0)
    _store(plan, d_key_ref, [x * plan.head_dim**-0.5 for x in d_key])
    _store(plan, d_value_ref, d_value)


def _walk(plan: _Plan, step: Callable, carry: Any, frame: jax.Array, shape: tuple[int, ...], beyond: int) -> Any:
    """Calls step(frame, rows, carry) for all tiles of the frames before, own and after, and returns the last carry.

    They are those of an array [frames, nodes, d], whose first frame is the one of number -beyond.
    """
    num_frames, nodes, _ = shape
    first, end = jnp.maximum(frame - 1, -beyond), jnp.minimum(frame + 2, num_frames - beyond)
    tiles = nodes // plan.other  # in a frame

    def body(index, carry):
        rows = pl.Slice(jax.lax.rem(index, tiles) * plan.other, plan.other)
        return step(first + jax.lax.div(index, tiles), rows, carry)

    return jax.lax.fori_loop(0, (end - first) * tiles, body, carry)


def _own_nodes(plan: _Plan, frame: jax.Array) -> jax.Array:
    return _nodes(plan, frame, pl.Slice(pl.program_id(1) * plan.own, plan.own))


def _nodes(plan: _Plan, frame: jax.Array, rows: pl.Slice) -> jax.Array:
    """The indices of nodes as dropout counts them, without padding."""
    return frame * plan.patches + rows.start + jnp.arange(rows.size)


def _dropping(plan: _Plan, dropout_ref: Any) -> Callable[[jax.Array, jax.Array], jax.Array | float]:
    """(indices of query nodes, of key nodes) -> what their probabilities are multiplied with."""
    if plan.dropout_rate == 0.0:
        return lambda query, key: 1.0
    head, clip = pl.program_id(0), pl.program_id(3)
    dropout = [dropout_ref[i] for i in range(5)]
    return lambda query, key: keep_scale(dropout, clip, head, query, key, plan.dropout_rate)


def _power_of_two_up_to(number: int) -> int:
    return 1 << number.bit_length() - 1


def _chunks(head_dim: int) -> list[slice]:
    """Cuts the head dimension, rounded up to a multiple of 16, into powers of two: 88 -> 0:64, 64:96."""
    chunks, start, stop = [], 0, pl.cdiv(head_dim, _MIN_SIDE) * _MIN_SIDE
    while start < stop:
        size = _power_of_two_up_to(stop - start)
        chunks.append(slice(start, start + size))
        start += size
    return chunks


def _masked_chunks(plan: _Plan) -> list[tuple[slice, jax.Array | None]]:
    """The chunks, with a mask [1, chunk] where they reach beyond d."""
    return [
        (chunk, (jnp.arange(chunk.start, chunk.stop) < plan.head_dim)[None] if chunk.stop > plan.head_dim else None)
        for chunk in _chunks(plan.head_dim)
    ]


def _load(plan: _Plan, ref: Any, *rows: Any) -> _Chunks:
    """Reads these rows of [..., d], and zeros beyond d."""
    return tuple(
        plgpu.load(ref.at[(*rows, chunk)], mask=mask, other=None if mask is None else 0.0)
        for chunk, mask in _masked_chunks(plan)
    )


def _store(plan: _Plan, ref: Any, tile: Iterable[jax.Array]) -> None:
    for x, (chunk, mask) in zip(tile, _masked_chunks(plan), strict=True):
        plgpu.store(ref.at[:, chunk], x.astype(ref.dtype), mask=mask)


def _zeros(plan: _Plan) -> _Chunks:
    """[own, d]."""
    return tuple(jnp.zeros((plan.own, chunk.stop - chunk.start), jnp.float32) for chunk in _chunks(plan.head_dim))


def _scores(plan: _Plan, left: _Chunks, right: _Chunks, weights: jax.Array) -> jax.Array:
    """[p, d], [k, d], weights [p, k] -> [p, k] float32, in units of log(2)."""
    scores = _product(left, right) * (weights.astype(jnp.float32) * (plan.head_dim**-0.5 * _LOG2_E))
    return jnp.where(weights != 0, scores, NO_EDGE)


def _product(left: _Chunks, right: _Chunks) -> jax.Array:
    """[p, d], [k, d] -> [p, k] float32."""
    return functools.reduce(jnp.add, (_dot(x, y.T) for x, y in zip(left, right, strict=True)))


def _add(total: Iterable[jax.Array], left: jax.Array, right: _Chunks) -> _Chunks:
    """total [p, d] + left [p, k] @ right [k, d], multiplied in the dtype of `right`."""
    return tuple(x + _dot(left.astype(y.dtype), y) for x, y in zip(total, right, strict=True))


def _dot(left: jax.Array, right: jax.Array) -> jax.Array:
    """Products of float32 are full ones, not of the 11 bits that tensor cores take; others are not concerned."""
    return plgpu.dot(left, right, precision=jax.lax.Precision.HIGHEST)
