"""Indexing of an array whose rows are split over devices: x[rows], each row fetched from the device that holds it.

By itself the compiler gathers the whole array on every device. Here the n devices form a grid, as square as possible.
First each device collects the rows of all devices in its line of the grid. Then the devices of a column ask each other
for the rows that they need. So a device holds about 2 sqrt(n) times its own rows instead of n times, and sends as many.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from stgt_jax.sharding import mesh_axes, mesh_to_split_over


def fetch_rows(x: jax.Array, rows: jax.Array) -> jax.Array:
    """x[rows], both split by clips over the mesh in use: [B, ...], int32 [B] -> [B, ...].

    A row may be asked for more than once; its gradients add up.
    """
    mesh = mesh_to_split_over()
    if mesh is None or not (axes := mesh_axes(mesh, "clip", x.shape[0])):
        return x[rows]
    by_clip = P(axes)
    fetch = functools.partial(_fetch, axes=axes, lines=_lines(math.prod(mesh.shape[axis] for axis in axes)))
    return jax.shard_map(fetch, in_specs=(by_clip, by_clip), out_specs=by_clip, check_vma=False)(x, rows)


def _fetch(x: jax.Array, rows: jax.Array, *, axes: tuple[str, ...], lines: list[list[int]]) -> jax.Array:
    """On each device [b, ...], [b] -> [b, ...]; `lines` holds the devices of each line of the grid."""
    columns = [list(column) for column in zip(*lines, strict=True)]
    of_line = jax.lax.all_gather(x, axes, axis_index_groups=lines, tiled=True)
    asked = jax.lax.all_gather(rows, axes, axis_index_groups=columns)  # [lines, b], by the devices of the column
    line = jax.lax.axis_index(axes) // len(lines[0])
    places = asked - line * len(of_line)
    here = (places >= 0) & (places < len(of_line))
    sent = jnp.where(jnp.expand_dims(here, range(2, x.ndim + 1)), of_line[jnp.where(here, places, 0)], 0)
    # One device of the column has the row, the others send zeros: the sum is the row.
    return jax.lax.psum_scatter(sent.astype(x.dtype), axes, axis_index_groups=columns)


def _lines(devices: int) -> list[list[int]]:
    """Arranges the devices in a grid as close to a square as their number allows, at least as wide as high."""
    height = max(n for n in range(1, math.isqrt(devices) + 1) if devices % n == 0)
    width = devices // height
    return [list(range(line * width, (line + 1) * width)) for line in range(height)]
