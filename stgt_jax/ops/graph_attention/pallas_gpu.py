"""Graph attention as Triton kernels, for NVIDIA GPUs: scores never leave the chip, and memory is linear in T.

A program owns one tile of query nodes of one head. It walks over the key tiles of the frame before, the frame itself
and the frame after, with the running softmax of flash attention. The gradient of the queries is computed likewise. For
the gradients of keys and values a program owns a tile of key nodes and walks over the query tiles. Every sum stays
inside one program, so results are the same bits in every run.

The sides of Triton's arrays are powers of two. Heads of width 88 would be padded to 128, which wastes 31% of every
product. A tile [nodes, d] is therefore a tuple of chunks along d: 64 and 32 for a width of 88.
Letters: as in `implementation`.
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
from stgt_jax.ops.graph_attention.implementation import Gradients, Inputs, Output
from stgt_jax.ops.platform import target_platform, unfit_gpu

# Scores are in units of log(2) inside the kernels: exp2 is one instruction, exp is several.
_LOG2_E = math.log2(math.e)

_MIN_SIDE = 16  # of what tensor cores multiply
_MAX_HEAD_DIM = 128
# The larger the own tiles, the fewer times the others are read, but the more registers a thread needs. These sides were
# the fastest of sixteen on an H100, in bfloat16 with heads of width 88.
_FORWARD_SIDE = 128
_BACKWARD_SIDE = 64
_OTHER_SIDE = 64
_MAX_TILE_BYTES = 128 * 96 * 2
_MAX_HEAD_DIM_IN_THREE_STAGES = 96  # with wider heads, Ada's 99 KiB of shared memory hold tiles of two stages only
# float32 is multiplied in full precision, outside the tensor cores, with whole rows in registers. Larger tiles, and
# heads wider than 112, spill kilobytes of registers. Larger tiles also need more shared memory than Ada has.
_FLOAT32_SIDE = 32
_NUM_WARPS = 4

_Chunks = tuple[jax.Array, ...]  # of an array [nodes, d]
_Softmax = tuple[_Chunks, jax.Array, jax.Array]  # the running softmax of a tile: output, maximum, sum
_Operand = tuple[Any, pl.BlockSpec]  # an array, or the shape of a result, and the part of it that a program sees


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The sizes that a kernel is traced for."""

    own: int  # nodes of the tile that a program owns
    other: int  # nodes of the tiles that it walks over
    beyond: int  # key frames before the first frame that attends: 0 or 1
    num_stages: int  # tiles in shared memory: the one in use, and those that are being read
    patches: int  # P, without padding
    head_dim: int
    dropout_rate: float

    @classmethod
    def of(cls, inputs: Inputs, own: int, num_stages: int) -> "_Plan":
        """For the sizes wanted in 16 bits: less where frame, registers or shared memory are smaller."""
        query, other = inputs.query, _OTHER_SIDE
        patches, _, head_dim = query.shape[2:]
        if query.dtype == jnp.float32:
            own = other = _FLOAT32_SIDE
        if query.dtype == jnp.float32 or head_dim > _MAX_HEAD_DIM_IN_THREE_STAGES:
            num_stages = 2
        fitting = _power_of_two_up_to(_MAX_TILE_BYTES // (_chunks(head_dim)[-1].stop * query.dtype.itemsize))
        side = max(_MIN_SIDE, pl.next_power_of_2(patches))
        own, other = (min(x, fitting, side) for x in (own, other))
        beyond = (inputs.key.shape[1] - query.shape[1]) // 2
        return cls(own, other, beyond, num_stages, patches, head_dim, inputs.dropout_rate)


def unfit(query: jax.Array) -> str:
    """See `Implementation`."""
    if query.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        return f"takes float32, bfloat16 or float16, not {query.dtype}"
    if query.shape[-1] > _MAX_HEAD_DIM:
        return f"takes heads of width {_MAX_HEAD_DIM} at most, not {query.shape[-1]}"
    return unfit_gpu()


def forward(inputs: Inputs) -> Output:
    """See `Implementation`."""
    plan = _Plan.of(inputs, _FORWARD_SIDE, num_stages=2)
    query, key, value = (_pad(plan, x, 2) for x in (inputs.query, inputs.key, inputs.value))
    weights = _pad(plan, _compact(inputs.weights, query.dtype), 3, 4)
    batch, num_frames, nodes, heads, _ = query.shape
    scalars = jax.ShapeDtypeStruct((batch, num_frames, heads, nodes), jnp.float32)
    out, log_sum_exp = _launch(
        _forward_kernel,
        plan,
        [_tile(plan, query), _clip(key), _clip(value), _query_weights(plan, weights), _dropout(inputs.dropout)],
        [_tile(plan, query), _scalar_tile(plan, scalars)],
    )
    return Output(out[:, :, : plan.patches], rearrange(log_sum_exp, "b t h p -> b t p h")[:, :, : plan.patches])


def backward(inputs: Inputs, output: Output, d_out: jax.Array) -> Gradients:
    """See `Implementation`."""
    plan = _Plan.of(inputs, _BACKWARD_SIDE, num_stages=3)
    delta = (output.out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(axis=-1)  # [B, T, P, H]
    scalars = [_pad(plan, rearrange(x, "b t p h -> b t h p"), 3) for x in (output.log_sum_exp * _LOG2_E, delta)]
    query, key, value, d_out = (_pad(plan, x, 2) for x in (inputs.query, inputs.key, inputs.value, d_out))
    weights = _pad(plan, _compact(inputs.weights, query.dtype), 3, 4)
    dropout = _dropout(inputs.dropout)

    own = [_tile(plan, query), _tile(plan, d_out), *(_scalar_tile(plan, x) for x in scalars)]
    others = [_clip(key), _clip(value), _query_weights(plan, weights), dropout]
    d_query = _launch(_d_query_kernel, plan, own + others, [_tile(plan, query)])

    own = [_tile(plan, key), _tile(plan, value)]
    others = [_clip(query), _clip(d_out), *map(_scalar_clip, scalars), _key_weights(plan, weights), dropout]
    d_key_value = _launch(_d_key_value_kernel, plan, own + others, own)
    return Gradients(*(x[:, :, : plan.patches] for x in (*d_query, *d_key_value)))


def _compact(weights: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The weights in 16 bits where the products are.

    They are multiples of 2^-20 and at most 1: float16 rounds none of them to zero, and has 3 bits more than bfloat16.
    """
    return weights if dtype == jnp.float32 else weights.astype(jnp.float16)


def _pad(plan: _Plan, x: jax.Array, *axes: int) -> jax.Array:
    """Appends nodes without edges, so that tiles divide the nodes."""
    return jnp.pad(x, [(0, -size % plan.own if axis in axes else 0) for axis, size in enumerate(x.shape)])


def _launch(kernel: Callable, plan: _Plan, operands: list[_Operand], results: list[_Operand]) -> list[jax.Array]:
    """Runs a program for every tile of the first result [B, frames, nodes, H, d]."""
    batch, frames, nodes, heads, _ = results[0][0].shape
    return pl.pallas_call(
        functools.partial(kernel, plan),
        # The first index runs fastest: the heads of a tile run together and share its weights in the cache.
        grid=(heads, nodes // plan.own, frames, batch),
        in_specs=[spec for _, spec in operands],
        out_specs=[spec for _, spec in results],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in results],
        compiler_params=plgpu.CompilerParams(num_warps=_NUM_WARPS, num_stages=plan.num_stages),
        interpret=target_platform() != "gpu",
    )(*(x for x, _ in operands))


def _tile(plan: _Plan, x: jax.Array) -> _Operand:
    """The program's own tile [own, d] of [B, frames, nodes, H, d]."""
    shape = (None, None, plan.own, None, _chunks(x.shape[-1])[-1].stop)
    return x, pl.BlockSpec(shape, lambda head, tile, frame, clip: (clip, frame, tile, head, 0))


def _clip(x: jax.Array) -> _Operand:
    """All [frames, nodes, d] of the program's clip and head, of [B, frames, nodes, H, d]."""
    _, frames, nodes, _, head_dim = x.shape
    shape = (None, frames, nodes, None, _chunks(head_dim)[-1].stop)
    return x, pl.BlockSpec(shape, lambda head, tile, frame, clip: (clip, 0, 0, head, 0))


def _scalar_tile(plan: _Plan, x: jax.Array | jax.ShapeDtypeStruct) -> _Operand:
    """The program's own [own] of [B, frames, H, nodes]."""
    return x, pl.BlockSpec((None, None, None, plan.own), lambda head, tile, frame, clip: (clip, frame, head, tile))


def _scalar_clip(x: jax.Array) -> _Operand:
    """All [frames, nodes] of the program's clip and head, of [B, frames, H, nodes]."""
    _, frames, _, nodes = x.shape
    return x, pl.BlockSpec((None, frames, None, nodes), lambda head, tile, frame, clip: (clip, 0, head, 0))


def _query_weights(plan: _Plan, weights: jax.Array) -> _Operand:
    """The edges from the program's own query nodes: [3, own, nodes]."""
    shape = (None, None, 3, plan.own, weights.shape[-1])
    return weights, pl.BlockSpec(shape, lambda head, tile, frame, clip: (clip, frame, 0, tile, 0))


def _key_weights(plan: _Plan, weights: jax.Array) -> _Operand:
    """The edges to the program's own key nodes: [T, 3, own, nodes], from every frame, as if they were in each block.

    Transposed here, once for all heads, since Triton prefetches only what a kernel uses in the order of memory.
    """
    shape = (None, *weights.shape[1:3], plan.own, weights.shape[-1])
    return weights.mT, pl.BlockSpec(shape, lambda head, tile, frame, clip: (clip, 0, 0, tile, 0))


def _dropout(dropout: jax.Array) -> _Operand:
    return dropout, pl.BlockSpec()


def _forward_kernel(plan: _Plan, *refs: jax.Ref) -> None:
    query_ref, key_ref, value_ref, weights_ref, dropout_ref, out_ref, log_sum_exp_ref = refs
    frame = pl.program_id(2)
    queries, keep_scale_of = _own_nodes(plan, frame), _dropping(plan, dropout_ref)
    query = _load(plan, query_ref, slice(None))

    def attend(key_frame: jax.Array, rows: pl.Slice, carry: _Softmax) -> _Softmax:
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


def _d_query_kernel(plan: _Plan, *refs: jax.Ref) -> None:
    query_ref, d_out_ref, log_sum_exp_ref, delta_ref, key_ref, value_ref, weights_ref, dropout_ref, d_query_ref = refs
    frame = pl.program_id(2)
    queries, keep_scale_of = _own_nodes(plan, frame), _dropping(plan, dropout_ref)
    query, d_out = (_load(plan, ref, slice(None)) for ref in (query_ref, d_out_ref))
    log_sum_exp, delta = (ref[...][:, None] for ref in (log_sum_exp_ref, delta_ref))

    def attend(key_frame: jax.Array, rows: pl.Slice, d_query: _Chunks) -> _Chunks:
        key, value = (_load(plan, ref, key_frame + plan.beyond, rows) for ref in (key_ref, value_ref))
        weights = weights_ref[key_frame - frame + 1, :, rows]
        probabilities = jnp.exp2(_scores(plan, query, key, weights) - log_sum_exp)
        scale = keep_scale_of(queries[:, None], _nodes(plan, key_frame, rows)[None])
        return _add(d_query, probabilities * (_product(d_out, value) * scale - delta) * weights, key)

    d_query = _walk(plan, attend, _zeros(plan), frame, key_ref.shape, plan.beyond)
    _store(plan, d_query_ref, [x * plan.head_dim**-0.5 for x in d_query])


def _d_key_value_kernel(plan: _Plan, *refs: jax.Ref) -> None:
    """Scores are [keys, queries] here, so that the left factor of both sums is in registers as it was computed."""
    (
        key_ref, value_ref, query_ref, d_out_ref, log_sum_exp_ref, delta_ref, weights_ref, dropout_ref, d_key_ref,
        d_value_ref,
    ) = refs  # fmt: skip
    frame = pl.program_id(2) - plan.beyond
    keys, keep_scale_of = _own_nodes(plan, frame), _dropping(plan, dropout_ref)
    key, value = (_load(plan, ref, slice(None)) for ref in (key_ref, value_ref))

    def attend(query_frame: jax.Array, rows: pl.Slice, carry: tuple[_Chunks, _Chunks]) -> tuple[_Chunks, _Chunks]:
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
    """Calls `step(frame, rows, carry)` for all tiles of the frame before, the frame itself and the one after.

    The tiles are those of an array of shape [frames, nodes, d], whose first frame has the number -beyond. Returns the
    last carry.
    """
    num_frames, nodes, _ = shape
    first, end = jnp.maximum(frame - 1, -beyond), jnp.minimum(frame + 2, num_frames - beyond)
    tiles = nodes // plan.other  # in a frame

    def body(index: jax.Array, carry: Any) -> Any:
        rows = pl.Slice(jax.lax.rem(index, tiles) * plan.other, plan.other)
        return step(first + jax.lax.div(index, tiles), rows, carry)

    return jax.lax.fori_loop(0, (end - first) * tiles, body, carry)


def _own_nodes(plan: _Plan, frame: jax.Array) -> jax.Array:
    return _nodes(plan, frame, pl.Slice(pl.program_id(1) * plan.own, plan.own))


def _nodes(plan: _Plan, frame: jax.Array, rows: pl.Slice) -> jax.Array:
    """The indices of nodes for dropout, which counts them without padding."""
    return frame * plan.patches + rows.start + jnp.arange(rows.size)


def _dropping(plan: _Plan, dropout_ref: jax.Ref) -> Callable[[jax.Array, jax.Array], jax.Array | float]:
    """Returns the function (indices of query nodes, of key nodes) -> factors of their probabilities."""
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
    """The chunks, each with a mask [1, chunk] where it reaches beyond d."""
    return [
        (chunk, (jnp.arange(chunk.start, chunk.stop) < plan.head_dim)[None] if chunk.stop > plan.head_dim else None)
        for chunk in _chunks(plan.head_dim)
    ]


def _load(plan: _Plan, ref: jax.Ref, *rows: Any) -> _Chunks:
    """Reads rows of [..., d], with zeros beyond d."""
    return tuple(
        plgpu.load(ref.at[(*rows, chunk)], mask=mask, other=None if mask is None else 0.0)
        for chunk, mask in _masked_chunks(plan)
    )


def _store(plan: _Plan, ref: jax.Ref, tile: Iterable[jax.Array]) -> None:
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
    """Returns total [p, d] + left [p, k] @ right [k, d], multiplied in the dtype of `right`."""
    return tuple(x + _dot(left.astype(y.dtype), y) for x, y in zip(total, right, strict=True))


def _dot(left: jax.Array, right: jax.Array) -> jax.Array:
    """Matrix product; float32 in full precision, not with the 11 bits that tensor cores take."""
    return plgpu.dot(left, right, precision=jax.lax.Precision.HIGHEST)
