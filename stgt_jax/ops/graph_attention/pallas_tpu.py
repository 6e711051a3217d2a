"""Graph attention as one fused sweep over the frames of a clip, for TPUs (Pallas, Mosaic TPU).

The grid runs through a clip frame by frame. The keys and values of each frame are loaded once and stay in a ring buffer
of three frames, the window of the frame that attends. In the backward pass their gradients are summed in such a buffer,
and are written when no later frame needs them. So every array is read or written once, and scores never leave the chip.

The graph is an input: one block of weights serves all heads of its frame. Heads lie side by side in memory. A head
width such as 88, which is no multiple of the 128 lanes, is cut out inside the kernel, so that nothing needs padding.
Letters: as in `implementation`; R nodes a frame, P padded to whole tiles with nodes that have no edges.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from stgt_jax.ops import tpu
from stgt_jax.ops.graph_attention.dropout import keep_scale
from stgt_jax.ops.graph_attention.graph import NO_EDGE
from stgt_jax.ops.graph_attention.implementation import Gradients, Inputs, Output
from stgt_jax.ops.platform import target_platform
from stgt_jax.ops.tpu import LANES, SUBLANES, product, round_up

_MAX_TILE = 128  # rows of scores at a time; more would spill registers
_RING = 3  # frames in a window


def unfit(query: jax.Array) -> str:
    """See `Implementation`."""
    return tpu.unfit(query, _Sizes.of(query, query, 0.0).vmem_bytes)


def forward(inputs: Inputs) -> Output:
    """See `Implementation`."""
    query, key, value = inputs.query, inputs.key, inputs.value
    sizes = _Sizes.of(query, key, inputs.dropout_rate)
    out, log_sum_exp = _sweep(
        _forward_kernel,
        sizes,
        inputs.dropout,
        steps=sizes.frames + sizes.beyond + 1,
        attending=[sizes.wide(query), sizes.square(inputs.weights)],
        attended=[sizes.wide(key), sizes.wide(value)],
        out_attending=[(sizes.width, query.dtype), (sizes.heads, jnp.float32)],
        rings=[query.dtype, query.dtype],
    )
    return Output(sizes.by_head(out), log_sum_exp[:, :, : sizes.patches])


def backward(inputs: Inputs, output: Output, d_out: jax.Array) -> Gradients:
    """See `Implementation`."""
    query, key, value = inputs.query, inputs.key, inputs.value
    sizes = _Sizes.of(query, key, inputs.dropout_rate)
    gradients = _sweep(
        _backward_kernel,
        sizes,
        inputs.dropout,
        steps=sizes.key_frames + _RING - 1,
        attending=[
            sizes.wide(query),
            sizes.square(inputs.weights),
            sizes.wide(output.out),
            sizes.wide(d_out),
            sizes.tall(output.log_sum_exp),
        ],
        attended=[sizes.wide(key), sizes.wide(value)],
        out_attending=[(sizes.width, query.dtype)],
        out_attended=[(sizes.width, query.dtype), (sizes.width, query.dtype)],
        rings=[query.dtype, query.dtype, jnp.float32, jnp.float32],
    )
    return Gradients(*map(sizes.by_head, gradients))


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """The sizes that the kernels need, and the arrays in the layout that they take."""

    batch: int
    frames: int  # T
    key_frames: int  # Tk
    patches: int  # P
    heads: int
    head_dim: int
    dtype: Any
    dropout_rate: float

    @classmethod
    def of(cls, query: jax.Array, key: jax.Array, dropout_rate: float) -> "_Sizes":
        batch, frames, patches, heads, head_dim = query.shape
        return cls(batch, frames, key.shape[1], patches, heads, head_dim, jnp.dtype(query.dtype), dropout_rate)

    @property
    def beyond(self) -> int:
        """Number of key frames before the first frame that attends: 0 or 1."""
        return (self.key_frames - self.frames) // 2

    @property
    def tile(self) -> int:
        """Rows of scores at a time."""
        return round_up(pl.cdiv(self.patches, pl.cdiv(self.patches, _MAX_TILE)), SUBLANES)

    @property
    def rows(self) -> int:
        """R."""
        return round_up(self.patches, self.tile)

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def vmem_bytes(self) -> int:
        """Vector memory of the backward kernel, the larger one. Blocks count twice: one loads while another is used."""
        item = self.dtype.itemsize
        wide, graph = self.rows * round_up(self.width, LANES), self.rows * round_up(self.rows, LANES)
        blocks = 8 * wide * item + (3 * graph + self.rows * round_up(self.heads, LANES)) * 4
        rings = _RING * self.heads * self.rows * round_up(self.head_dim, LANES) * (2 * item + 2 * 4)
        scores = 8 * self.tile * round_up(self.rows, LANES) * 4
        return 2 * blocks + rings + scores

    def wide(self, x: jax.Array) -> jax.Array:
        """[B, t, P, H, d] -> [B, t, R, H * d]."""
        return self.tall(rearrange(x, "b t p h d -> b t p (h d)"))

    def tall(self, x: jax.Array) -> jax.Array:
        """[B, t, P, any] -> [B, t, R, any]."""
        return jnp.pad(x, [(0, 0), (0, 0), (0, self.rows - self.patches), (0, 0)])

    def square(self, weights: jax.Array) -> jax.Array:
        """[B, T, 3, P, P] -> [B, T, 3, R, R]."""
        more = (0, self.rows - self.patches)
        return jnp.pad(weights, [(0, 0), (0, 0), (0, 0), more, more])

    def by_head(self, x: jax.Array) -> jax.Array:
        """[B, t, R, H * d] -> [B, t, P, H, d]."""
        return rearrange(x[:, :, : self.patches], "b t p (h d) -> b t p h d", h=self.heads)


def _sweep(
    kernel: Callable[..., None],
    sizes: _Sizes,
    dropout: jax.Array,
    *,
    steps: int,
    attending: Sequence[jax.Array],
    attended: Sequence[jax.Array],
    out_attending: Sequence[tuple[int, Any]],
    out_attended: Sequence[tuple[int, Any]] = (),
    rings: Sequence[Any],
) -> Sequence[jax.Array]:
    """Runs a kernel at every step of every clip.

    At step s key frame s is loaded, the frame whose window ends with it attends, and the results for the key frame that
    no later frame attends to are written.

    Args:
      kernel: takes the step, then references to: dropout key, `attending`, `attended`, outputs, rings.
      sizes: the sizes of the arrays.
      dropout: the dropout key.
      steps: the number of steps of a clip.
      attending: arrays [B, T, ...]; the kernel sees the frame that attends.
      attended: arrays [B, Tk, ...]; the kernel sees the key frame that is loaded.
      out_attending: (width, dtype) of outputs [B, T, R, width], for the frame that attends.
      out_attended: (width, dtype) of outputs [B, Tk, R, width], for the key frame that is written.
      rings: dtypes of the ring buffers [3, H, R, d].
    """

    def blocks(frame: Callable[[jax.Array], jax.Array], *shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, *shape), lambda b, s: (b, frame(s), *(0 for _ in shape)))

    def attends(step: jax.Array) -> jax.Array:
        return jnp.clip(step - 1 - sizes.beyond, 0, sizes.frames - 1)

    def loaded(step: jax.Array) -> jax.Array:
        return jnp.minimum(step, sizes.key_frames - 1)

    def written(step: jax.Array) -> jax.Array:
        return jnp.maximum(step - (_RING - 1), 0)

    outs = [(attends, sizes.frames, *out) for out in out_attending]
    outs += [(written, sizes.key_frames, *out) for out in out_attended]
    return pl.pallas_call(
        lambda *references: kernel(_Step(sizes, pl.program_id(0), pl.program_id(1)), *references),
        grid=(sizes.batch, steps),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            *(blocks(attends, *x.shape[2:]) for x in attending),
            *(blocks(loaded, *x.shape[2:]) for x in attended),
        ],
        out_specs=[blocks(frame, sizes.rows, width) for frame, _, width, _ in outs],
        out_shape=[
            jax.ShapeDtypeStruct((sizes.batch, frames, sizes.rows, width), dtype) for _, frames, width, dtype in outs
        ],
        scratch_shapes=[pltpu.VMEM((_RING, sizes.heads, sizes.rows, sizes.head_dim), dtype) for dtype in rings],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=tpu.vmem_limit(sizes.vmem_bytes)
        ),
        cost_estimate=_cost(sizes, 5 if out_attended else 2, [*attending, *attended]),
        interpret=target_platform() != "tpu",
    )(dropout, *attending, *attended)


def _cost(sizes: _Sizes, products: int, arrays: Sequence[jax.Array]) -> pl.CostEstimate:
    """The cost that the compiler assumes when it schedules other work beside the kernel."""
    pairs = sizes.batch * (3 * sizes.frames - 2) * sizes.patches**2
    return pl.CostEstimate(
        flops=products * 2 * pairs * sizes.width,
        transcendentals=pairs * sizes.heads,
        bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays),
    )


@dataclasses.dataclass(frozen=True)
class _Step:
    """The position in the grid, read once: the interpreter does not know it inside conditions and loops."""

    sizes: _Sizes
    clip: jax.Array
    step: jax.Array

    @property
    def frame(self) -> jax.Array:
        """The frame that attends; no frame does where this is below 0 or at least T."""
        return self.step - 1 - self.sizes.beyond

    def slot(self, block: int | jax.Array) -> jax.Array:
        """The place in the ring buffers of block 0, 1 or 2 of the window; block 2 is loaded at this step."""
        return (self.step + 1 + block) % _RING

    def blocks(self) -> tuple[jax.Array, jax.Array]:
        """The first block of the window, and the end of its blocks: a clip's first and last frame have only two."""
        return jnp.where(self.step < 2, 1, 0), jnp.where(self.step < self.sizes.key_frames, 3, 2)

    def columns(self, head: int) -> slice:
        """The columns of a head in [R, H * d]."""
        return slice(head * self.sizes.head_dim, (head + 1) * self.sizes.head_dim)

    def load(self, source: jax.Ref, ring: jax.Ref) -> None:
        """Copies the loaded key frame into its slot, head by head, so that later reads are whole tiles."""

        @pl.when(self.step < self.sizes.key_frames)
        def _() -> None:
            for head in range(self.sizes.heads):
                ring[self.slot(2), head] = source[:, self.columns(head)]

    def write(self, ring: jax.Ref, target: jax.Ref) -> None:
        """Writes the results for the key frame that no later frame attends to."""

        @pl.when(self.step >= _RING - 1)
        def _() -> None:
            for head in range(self.sizes.heads):
                target[:, self.columns(head)] = ring[self.slot(0), head].astype(target.dtype)

    def attend(self, tile: Callable[[Any, int], None]) -> None:
        """Calls `tile(rows, head)` for every tile and head of the frame that attends."""
        size = self.sizes.tile

        @pl.when((self.frame >= 0) & (self.frame < self.sizes.frames))
        def _() -> None:
            @pl.loop(0, self.sizes.rows // size)
            def _(i: jax.Array) -> None:
                for head in range(self.sizes.heads):
                    tile(pl.ds(pl.multiple_of(i * size, size), size), head)

    def scores(self, query: jax.Array, key: jax.Array, graph: jax.Array) -> jax.Array:
        """[tile, d], [R, d], weights [tile, R] -> [tile, R] float32."""
        scores = product(query, key, (1, 1)) * (graph * self.sizes.head_dim**-0.5)
        return jnp.where(graph != 0, scores, NO_EDGE)

    def keep_scale(self, dropout_ref: jax.Ref, head: int, rows: Any, block: jax.Array) -> jax.Array:
        """See `dropout.keep_scale`, for a tile of probabilities [tile, R]."""
        sizes = self.sizes
        dropout = [dropout_ref[i] for i in range(5)]
        query = self.frame * sizes.patches + rows.start + jax.lax.broadcasted_iota(jnp.int32, (sizes.tile, 1), 0)
        key = (self.frame + block - 1) * sizes.patches + jax.lax.broadcasted_iota(jnp.int32, (1, sizes.rows), 1)
        return keep_scale(dropout, self.clip, head, query, key, sizes.dropout_rate)


_Carry = tuple[jax.Array, jax.Array, jax.Array]  # the running softmax of a tile: maximum, sum, output


def _forward_kernel(step: _Step, *refs: jax.Ref) -> None:
    dropout, query_ref, weights_ref, key_ref, value_ref, out_ref, log_sum_exp_ref, key_ring, value_ring = refs
    step.load(key_ref, key_ring)
    step.load(value_ref, value_ring)

    @step.attend
    def _(rows: Any, head: int) -> None:
        query = query_ref[rows, step.columns(head)]

        def visit(block: jax.Array, carry: _Carry) -> _Carry:
            highest, total, out = carry
            slot = step.slot(block)
            scores = step.scores(query, key_ring[slot, head], weights_ref[block, rows, :])
            highest, before = jnp.maximum(highest, scores.max(axis=-1, keepdims=True)), highest
            shrink = jnp.exp(before - highest)
            probabilities = jnp.exp(scores - highest)
            total = total * shrink + probabilities.sum(axis=-1, keepdims=True)
            if step.sizes.dropout_rate > 0.0:
                probabilities *= step.keep_scale(dropout, head, rows, block)
            value = value_ring[slot, head]
            out = out * shrink + product(probabilities.astype(value.dtype), value, (1, 0))
            return highest, total, out

        zeros = jnp.zeros((query.shape[0], 1), jnp.float32)
        start = zeros + NO_EDGE, zeros, jnp.zeros(query.shape, jnp.float32)
        highest, total, out = jax.lax.fori_loop(*step.blocks(), visit, start)
        has_edge = highest > NO_EDGE
        out_ref[rows, step.columns(head)] = jnp.where(has_edge, out / total, 0.0).astype(out_ref.dtype)
        log_sum_exp_ref[rows, head : head + 1] = jnp.where(has_edge, highest + jnp.log(total), 0.0)


def _backward_kernel(step: _Step, *refs: jax.Ref) -> None:
    (
        dropout, query_ref, weights_ref, out_ref, d_out_ref, log_sum_exp_ref, key_ref, value_ref, d_query_ref,
        d_key_ref, d_value_ref, key_ring, value_ring, d_key_ring, d_value_ring,
    ) = refs  # fmt: skip
    step.load(key_ref, key_ring)
    step.load(value_ref, value_ring)
    for ring in (d_key_ring, d_value_ring):
        ring[step.slot(2)] = jnp.zeros(ring.shape[1:], ring.dtype)

    @step.attend
    def _(rows: Any, head: int) -> None:
        query, out, d_out = (ref[rows, step.columns(head)] for ref in (query_ref, out_ref, d_out_ref))
        log_sum_exp = log_sum_exp_ref[rows, head : head + 1]
        delta = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(axis=-1, keepdims=True)

        def visit(block: jax.Array, d_query: jax.Array) -> jax.Array:
            slot = step.slot(block)
            key, graph = key_ring[slot, head], weights_ref[block, rows, :]
            probabilities = jnp.exp(step.scores(query, key, graph) - log_sum_exp)
            kept, d_probabilities = probabilities, product(d_out, value_ring[slot, head], (1, 1))
            if step.sizes.dropout_rate > 0.0:
                scale = step.keep_scale(dropout, head, rows, block)
                kept, d_probabilities = kept * scale, d_probabilities * scale
            d_scores = probabilities * (d_probabilities - delta) * (graph * step.sizes.head_dim**-0.5)
            d_scores = d_scores.astype(query.dtype)
            d_key_ring[slot, head] += product(d_scores, query, (0, 0))
            d_value_ring[slot, head] += product(kept.astype(query.dtype), d_out, (0, 0))
            return d_query + product(d_scores, key, (1, 0))

        d_query = jax.lax.fori_loop(*step.blocks(), visit, jnp.zeros(query.shape, jnp.float32))
        d_query_ref[rows, step.columns(head)] = d_query.astype(d_query_ref.dtype)

    step.write(d_key_ring, d_key_ref)
    step.write(d_value_ring, d_value_ref)
