"""Rows of an array that lies split over devices, each fetched from the device that holds it.

Left to itself the compiler gathers the whole array on every device, which grows with the number of devices. Here a
device receives the rows it asks for and nothing else, by a ragged all-to-all on TPUs and GPUs; CPUs, which have no such
collective, gather.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from stgt_jax.ops.platform import target_platform
from stgt_jax.sharding import mesh_axes, mesh_to_split_over

Axes = tuple[str, ...]


def fetch_rows(x: jax.Array, rows: jax.Array, *, exchange: bool | None = None) -> jax.Array:
    """x[rows], both split over clips on the mesh in use: [B, ...], int32 [B] -> [B, ...].

    Args:
      x: the rows to choose from.
      rows: indices in [0, B); a row may be asked for any number of times. Its gradients then add up, in float32.
      exchange: send rows from device to device, or gather all of them on each; by default what the platform can.
    """
    mesh = mesh_to_split_over()
    axes = () if mesh is None else mesh_axes(mesh, "clip", x.shape[0])
    if not axes:
        return x[rows]
    exchange = target_platform() != "cpu" if exchange is None else exchange
    fetch = _exchange if exchange else _gather
    by_clip = P(axes)
    split = jax.shard_map(
        functools.partial(fetch, axes), in_specs=(by_clip, by_clip), out_specs=by_clip, check_vma=False
    )
    return split(x, rows)


def _gather(axes: Axes, x: jax.Array, rows: jax.Array) -> jax.Array:
    return jax.lax.all_gather(x, axes, tiled=True)[rows]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _exchange(axes: Axes, x: jax.Array, rows: jax.Array) -> jax.Array:
    """[b, ...], [b] -> [b, ...] on each device: every row asked for is a slice of its own, of one row or none."""
    owners, places = _requests(axes, rows)  # [n, b]
    mine = owners == jax.lax.axis_index(axes)
    return jax.lax.ragged_all_to_all(
        x,
        jnp.zeros_like(x),
        input_offsets=_flat(jnp.where(mine, places, 0)),
        send_sizes=_flat(mine),
        output_offsets=_flat(jnp.broadcast_to(jnp.arange(len(rows)), owners.shape)),
        recv_sizes=_flat(_asked_of_each(axes, owners)),
        axis_name=axes,
    )


def _exchange_forward(axes: Axes, x: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _exchange(axes, x, rows), rows


def _exchange_backward(axes: Axes, rows: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None]:
    """Sends each row's gradient to where the row came from, which adds up what it gets.

    A row that many asked for gets as many gradients: more than may fit at once. So the requests to each device are
    numbered, and in a round it takes as many as it has rows; there are as many rounds as the busiest device needs.
    """
    owners, places = _requests(axes, rows)
    mine, ranks = owners == jax.lax.axis_index(axes), _ranks(owners)
    asked_by_me = jax.lax.axis_index(axes)
    capacity = len(rows)

    def one_round(i: jax.Array, total: jax.Array) -> jax.Array:
        slots = ranks - i * capacity  # [n, b], of the buffer of each request's owner
        now = (slots >= 0) & (slots < capacity)
        sends = _asked_of_each(axes, owners) & now[asked_by_me]  # [n, b]: my request r goes to device d
        received = jax.lax.ragged_all_to_all(
            gradient,
            jnp.zeros_like(gradient),
            input_offsets=_flat(jnp.broadcast_to(jnp.arange(capacity), owners.shape)),
            send_sizes=_flat(sends),
            output_offsets=_flat(jnp.broadcast_to(jnp.where(now, slots, 0)[asked_by_me], owners.shape)),
            recv_sizes=_flat(mine & now),
            axis_name=axes,
        )
        row_of_slot = jnp.zeros(capacity, jnp.int32).at[jnp.where(mine & now, slots, capacity)].set(places, mode="drop")
        return total.at[row_of_slot].add(received.astype(jnp.float32))

    busiest = jnp.bincount(owners.reshape(-1), length=len(owners)).max()
    total = jax.lax.fori_loop(0, -(-busiest // capacity), one_round, jnp.zeros(gradient.shape, jnp.float32))
    return total.astype(gradient.dtype), None


_exchange.defvjp(_exchange_forward, _exchange_backward)


def _requests(axes: Axes, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What all devices ask for: (the device that holds it, the row's place there), [n, b] each."""
    rows = jax.lax.all_gather(rows, axes)
    return rows // rows.shape[1], rows % rows.shape[1]


def _asked_of_each(axes: Axes, owners: jax.Array) -> jax.Array:
    """True at [d, r] where this device's request r goes to device d: [n, b] -> [n, b]."""
    return jnp.arange(len(owners))[:, None] == owners[jax.lax.axis_index(axes)]


def _ranks(owners: jax.Array) -> jax.Array:
    """Numbers the requests to each device from 0: [n, b] -> [n, b]."""
    flat = owners.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    first = jnp.searchsorted(flat[order], flat[order])  # where the requests to the same device begin
    ranks = jnp.arange(flat.size) - first
    return jnp.zeros_like(flat).at[order].set(ranks.astype(flat.dtype)).reshape(owners.shape)


def _flat(x: Any) -> jax.Array:
    return x.astype(jnp.int32).reshape(-1)
