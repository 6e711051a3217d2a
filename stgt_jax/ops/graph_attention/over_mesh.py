"""Graph attention split over a mesh of devices by clips, heads and frames.

The compiler cannot split a kernel, and would gather the whole batch for it. Here every device attends for its own part.
Where frames are split, a device needs the frame before its first and the frame after its last one. Only these are sent,
so a device's memory does not grow with the length of the clip.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from stgt_jax.sharding import mesh_axes, mesh_to_split_over

Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def run(
    attend: Attend, query: jax.Array, key: jax.Array, value: jax.Array, nodes: jax.Array, dropout: jax.Array
) -> jax.Array:
    """Calls `attend` for all clips, frames and heads: in one call, or split over the mesh in use.

    Args:
      attend: for a part of the clips, frames and heads, (query [b, t, P, h, d], key and value [b, t or t + 2, P, h, d],
        nodes [b, t or t + 2, P, D], dropout key) -> [b, t, P, h, d].
      query: [B, T, P, H, d].
      key: [B, T, P, H, d].
      value: [B, T, P, H, d].
      nodes: [B, T, P, D].
      dropout: the dropout key.

    Returns:
      [B, T, P, H, d]. A dimension that not all of its mesh axes divide is split over the first that do, or over none.
    """
    mesh = mesh_to_split_over()
    if mesh is None:
        return attend(query, key, value, nodes, dropout)
    batch, frames, patches, heads, _ = query.shape
    clip_axes, head_axes, frame_axes = (
        mesh_axes(mesh, name, size) for name, size in (("clip", batch), ("head", heads), ("frame", frames))
    )

    def part(query: jax.Array, key: jax.Array, value: jax.Array, nodes: jax.Array, dropout: jax.Array) -> jax.Array:
        if frame_axes:
            key, value, nodes = (_with_neighbours(x, frame_axes[0], mesh) for x in (key, value, nodes))
        first = [
            jax.lax.axis_index(axes) * size if axes else 0
            for axes, size in (
                (clip_axes, query.shape[0]),
                (head_axes, query.shape[3]),
                (frame_axes, query.shape[1] * patches),
            )
        ]
        return attend(query, key, value, nodes, dropout.at[2:].add(jnp.array(first, jnp.int32)))

    by_head = P(clip_axes, frame_axes, None, head_axes, None)
    split = jax.shard_map(
        part,
        in_specs=(by_head, by_head, by_head, P(clip_axes, frame_axes, None, None), P()),
        out_specs=by_head,
        check_vma=False,  # kernels do not declare over which axes their results vary
    )
    return split(query, key, value, nodes, dropout)


def _with_neighbours(x: jax.Array, axis: str, mesh: AbstractMesh) -> jax.Array:
    """Adds the adjacent frames of the neighbouring devices, zeros at a clip's ends: [b, t, ...] -> [b, t + 2, ...]."""
    steps = [(i, i + 1) for i in range(mesh.shape[axis] - 1)]
    before = jax.lax.ppermute(x[:, -1:], axis, steps)
    after = jax.lax.ppermute(x[:, :1], axis, [(there, here) for here, there in steps])
    return jnp.concatenate([before, x, after], axis=1)
