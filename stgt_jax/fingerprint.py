"""Tells whether two trees of parameters are the same, wherever and however they lie on devices."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict


def fingerprint(params: Any) -> str:
    """Returns a hash, in hexadecimal, of the names, shapes and values of parameters, to the precision of bfloat16.

    A frozen matrix that was cast to bfloat16 thus has the fingerprint of the original. The sums are made on the
    devices, in integers, so that the layout changes nothing.
    """
    flat = flatten_dict(params, sep="/")
    names = sorted(flat)
    sums = jax.device_get(jax.jit(lambda leaves: [_checksum(leaf) for leaf in leaves])([flat[name] for name in names]))
    digest = hashlib.sha256()
    for name, of_leaf in zip(names, sums, strict=True):
        digest.update(f"{name} {flat[name].shape} {of_leaf.tolist()}\n".encode())
    return digest.hexdigest()


def _checksum(leaf: jax.Array) -> jax.Array:
    """Sums of all values, each mixed with its position in two ways: uint32 [2]."""
    bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.bfloat16), jnp.uint16).astype(jnp.uint32)
    position, stride = jnp.zeros(leaf.shape, jnp.uint32), 1
    for axis in reversed(range(leaf.ndim)):
        position += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * jnp.uint32(stride % (1 << 32))
        stride *= leaf.shape[axis]
    return jnp.stack([_mix(bits, position, seed).sum(dtype=jnp.uint32) for seed in (0x9E3779B9, 0x85EBCA6B)])


def _mix(bits: jax.Array, position: jax.Array, seed: int) -> jax.Array:
    mixed = (bits ^ (position * jnp.uint32(0x27D4EB2D))) + jnp.uint32(seed)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return mixed ^ (mixed >> 16)
