"""Dropout of attention probabilities by a hash, so that no mask is stored for the backward pass.

Whether a probability is kept depends on the key and on its place (clip, head, query node, key node) only. It depends
neither on the tiles of an implementation nor on the device.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

Index = jax.Array | int


def make_key(rng: jax.Array | None) -> jax.Array:
    """The key of the hash, an array that can be passed to kernels: int32 [5].

    Its numbers are two random ones, drawn from `rng` (0 without it, where nothing is dropped), then the global index of
    the first clip, the first head and the first node on this device.
    """
    bits = jnp.zeros(2, jnp.uint32) if rng is None else jax.random.bits(rng, (2,), jnp.uint32)
    return jnp.concatenate([jax.lax.bitcast_convert_type(bits, jnp.int32), jnp.zeros(3, jnp.int32)])


def keep_scale(
    dropout: Iterable[jax.Array], clip: Index, head: Index, query: Index, key: Index, rate: float
) -> jax.Array:
    """The factors of the probabilities: 0 with probability `rate`, else 1 / (1 - rate).

    The indices are int32, count from the first clip, head and node on this device, and broadcast against each other.

    Args:
      dropout: the five numbers of `make_key`.
      clip: indices of clips.
      head: indices of heads.
      query: indices of query nodes.
      key: indices of key nodes; -1 is the last node of the frame before the first one on this device.
      rate: in (0, 1).

    Returns:
      float32, of the broadcast shape.
    """
    row_seed, column_seed, first_clip, first_head, first_node = dropout
    row = _mix(_mix(_mix(row_seed + first_clip + clip) + first_head + head) + first_node + query)
    column = _mix(column_seed + first_node + key)
    bits = jax.lax.shift_right_logical(_mix(row ^ column), jnp.int32(1))  # 31 random bits: never negative
    return jnp.where(bits >= round(rate * 2**31), jnp.float32(1.0 / (1.0 - rate)), jnp.float32(0.0))


def _mix(x: jax.Array) -> jax.Array:
    """MurmurHash3's bijection of 32-bit integers: every bit of the result depends on every bit of `x`."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, None)):
        x = x ^ jax.lax.shift_right_logical(x, jnp.int32(shift))
        if factor is not None:
            x = x * jnp.int32(factor - 2**32)
    return x
