"""Rows of an array that lies split over devices, each fetched from the device that holds it.

Left to itself the compiler gathers the whole array on every device. Here the n devices stand in a square: each collects
the rows of its line, and sends to the devices of its column what they asked for of them. A device then holds about
2 sqrt(n) times its own rows instead of n times, and sends as many.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from stgt_jax.sharding import mesh_axes, mesh_to_split_over


def fetch_rows(x: jax.Array, rows: jax.Array) -> jax.Array:
    """x[rows], both split over clips on the mesh in use: [B, ...], int32 [B] -> [B, ...].

    A row may be asked for any number of times; its gradients add up.
    """
    mesh = mesh_to_split_over()
    if mesh is None or not (axes := mesh_axes(mesh, "clip", x.shape[0])):
        return x[rows]
    by_clip = P(axes)
    fetch = functools.partial(_fetch, axes=axes, lines=_lines(math.prod(mesh.shape[axis] for axis in axes)))
    return jax.shard_map(fetch, in_specs=(by_clip, by_clip), out_specs=by_clip, check_vma=False)(x, rows)


def _fetch(x: jax.Array, rows: jax.Array, *, axes: tuple[str, ...], lines: list[list[int]]) -> jax.Array:
    """[b, ...], [b] -> [b, ...] on each device; `lines` are the devices of each line of the square."""
    columns = [list(column) for column in zip(*lines, strict=True)]
    of_line = jax.lax.all_gather(x, axes, axis_index_groups=lines, tiled=True)
    asked = jax.lax.all_gather(rows, axes, axis_index_groups=columns)  # [lines, b], by the devices of the column
    line = jax.lax.axis_index(axes) // len(lines[0])
    places = asked - line * len(of_line)
    here = (places >= 0) & (places < len(of_line))
    sent = jnp.where(jnp.expand_dims(here, range(2, x.ndim + 1)), of_line[jnp.where(here, places, 0)], 0)
    # Of the column's devices one has the row and the others nothing: the sum is the row.
    return jax.lax.psum_scatter(sent.astype(x.dtype), axes, axis_index_groups=columns)


def _lines(devices: int) -> list[list[int]]:
    """The devices in a rectangle as near to a square as their number allows, no higher than wide."""
    height = max(n for n in range(1, math.isqrt(devices) + 1) if devices % n == 0)
    width = devices // height
    return [list(range(line * width, (line + 1) * width)) for line in range(height)]
