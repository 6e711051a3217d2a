"""The graph: thresholded cosine similarities between the nodes of neighbouring frames (docs/model.md section 2.3).

It is never learned: no gradient flows into the nodes. Every implementation of graph attention reads it from here.
"""

import jax
import jax.numpy as jnp

# The score of a pair without an edge: far below any real one, and far below any log-sum-exp, yet finite, so that a row
# without edges stays finite.
NO_EDGE = -1e30
_MIN_NORM = 1e-8
# Similarities are rounded to multiples of it: as far as float32 sums of another order lie apart. What is equal,
# opposite or orthogonal in exact arithmetic is then 1, -1 or 0 wherever it is computed.
_RESOLUTION = 2.0**-20


def adjacency(nodes: jax.Array, *, num_frames: int, sim_threshold: float) -> jax.Array:
    """The weighted graph: thresholded cosine similarities inside the band of neighbouring frames.

    Args:
      nodes: [B, N, D].
      num_frames: T; two nodes can have an edge if their frames differ by at most one.
      sim_threshold: similarities below it become 0, and 0 is no edge.

    Returns:
      [B, N, N] float32. Every node but a zero token has a self-loop of weight 1.
    """
    weights = _with_self_loops(_similarity(nodes, nodes, sim_threshold), nodes)  # [B, N, N]
    frame = jnp.arange(num_frames).repeat(nodes.shape[1] // num_frames)  # [N]
    return jnp.where(abs(frame[:, None] - frame[None, :]) <= 1, weights, 0.0)


def banded_adjacency(nodes: jax.Array, *, num_frames: int, sim_threshold: float) -> jax.Array:
    """The blocks of `adjacency` that can hold edges, in memory linear in T.

    Args:
      nodes: [B, Tk, P, D]. Tk = T, or T + 2: then the first and the last frame are neighbours beyond the T that attend.
      num_frames: T.
      sim_threshold: as for `adjacency`.

    Returns:
      [B, T, 3, P, P] float32: from each frame's nodes to those of the frame before, its own and the one after; zeros
      where there is none.
    """
    own = nodes[:, 1:-1] if nodes.shape[1] > num_frames else nodes
    own = _with_self_loops(_similarity(own, own, sim_threshold), own)  # [B, T, P, P]
    after = _similarity(nodes[:, :-1], nodes[:, 1:], sim_threshold)  # [B, Tk - 1, P, P]
    if nodes.shape[1] == num_frames:
        after = jnp.pad(after, [(0, 0), (1, 1), (0, 0), (0, 0)])
    # The same numbers both ways: an edge is one for both its nodes.
    return jnp.stack([after[:, :-1].swapaxes(-1, -2), own, after[:, 1:]], axis=2)


def _similarity(left: jax.Array, right: jax.Array, sim_threshold: float) -> jax.Array:
    """Thresholded cosine similarity, float32: [..., P, D], [..., K, D] -> [..., P, K]."""
    left, right = jax.lax.stop_gradient((left, right))
    # Products before norms: those of bfloat16 nodes are exact, which products of rounded unit vectors would not be.
    similarity = jnp.einsum(
        "...pd,...kd->...pk", left, right, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    left, right = (jnp.maximum(_norm(x), _MIN_NORM) for x in (left, right))
    # By the product of both norms at once: else an edge could weigh another number on its way back.
    similarity = similarity / (left[..., :, None] * right[..., None, :])
    similarity = jnp.round(similarity / _RESOLUTION) * _RESOLUTION
    return jnp.where(similarity < sim_threshold, 0.0, similarity)


def _with_self_loops(weights: jax.Array, nodes: jax.Array) -> jax.Array:
    """Writes 1 where a node meets itself: no threshold may cut a self-loop. A zero token has none."""
    is_node = (_norm(jax.lax.stop_gradient(nodes)) >= _MIN_NORM).astype(jnp.float32)  # [..., P]
    return jnp.where(jnp.eye(nodes.shape[-2], dtype=bool), is_node[..., None], weights)


def _norm(nodes: jax.Array) -> jax.Array:
    return jnp.linalg.norm(nodes.astype(jnp.float32), axis=-1)
