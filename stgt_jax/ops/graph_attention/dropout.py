"""Dropout of attention probabilities by a hash of what is dropped, so that nothing is stored for the backward pass.

Whether a probability is kept depends on the key and on the place (clip, head, query node, key node) alone: not on how
an implementation cuts its tiles, nor on which device computes them.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

Index = jax.Array | int


def make_key(rng: jax.Array | None) -> jax.Array:
    """What the hash starts from: int32 [5], an array that passes through jit and into kernels.

    Two random numbers of a `jax.random` key (any will do where nothing is dropped), then the global index of the first
    clip, the first head and the first node held here.
    """
    bits = jnp.zeros(2, jnp.uint32) if rng is None else jax.random.bits(rng, (2,), jnp.uint32)
    return jnp.concatenate([jax.lax.bitcast_convert_type(bits, jnp.int32), jnp.zeros(3, jnp.int32)])


def keep_scale(
    dropout: Iterable[jax.Array], clip: Index, head: Index, query: Index, key: Index, rate: float
) -> jax.Array:
    """What probabilities are multiplied with: 0 with probability `rate`, else 1 / (1 - rate).

    Args:
      dropout: the five numbers of `make_key`.
      clip: int32 indices among those held here; this and the following broadcast together.
      head: likewise.
      query: node.
      key: node; -1, say, is the last one of the frame beyond the first held here.
      rate: in (0, 1).

    Returns:
      float32, of the broadcast shape.
    """
    row_seed, column_seed, first_clip, first_head, first_node = dropout
    row = _mix(_mix(_mix(row_seed + first_clip + clip) + first_head + head) + first_node + query)
    column = _mix(column_seed + first_node + key)
    bits = jax.lax.shift_right_logical(_mix(row ^ column), jnp.int32(1))  # 31 random ones: never negative
    return jnp.where(bits >= round(rate * 2**31), jnp.float32(1.0 / (1.0 - rate)), jnp.float32(0.0))


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit integers in which every bit of the result depends on every bit given (MurmurHash3's)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, None)):
        x = x ^ jax.lax.shift_right_logical(x, jnp.int32(shift))
        if factor is not None:
            x = x * jnp.int32(factor - 2**32)
    return x
