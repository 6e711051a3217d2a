"""The graph: thresholded cosine similarities between the nodes of neighbouring frames (docs/model.md section 2.3).

No gradient flows through it into the nodes. All implementations of graph attention take it from here.
"""

import jax
import jax.numpy as jnp

# The score of a pair without an edge: far below every real score and log-sum-exp, but finite, so that a row without
# edges gives no NaN.
NO_EDGE = -1e30
_MIN_NORM = 1e-8
# Similarities are rounded to multiples of this, about the difference between float32 sums in different orders. Nodes
# that are equal, opposite or orthogonal then have exactly 1, -1 or 0 on every device.
_RESOLUTION = 2.0**-20


def adjacency(nodes: jax.Array, *, num_frames: int, sim_threshold: float) -> jax.Array:
    """The weighted graph: thresholded cosine similarities of nodes in the same or in neighbouring frames.

    Args:
      nodes: [B, N, D].
      num_frames: T; two nodes can have an edge if their frames differ by at most one.
      sim_threshold: similarities below it become 0, and 0 means "no edge".

    Returns:
      [B, N, N] float32. Every node but a zero token has a self-loop of weight 1.
    """
    weights = _with_self_loops(_similarity(nodes, nodes, sim_threshold), nodes)  # [B, N, N]
    frame = jnp.arange(num_frames).repeat(nodes.shape[1] // num_frames)  # [N]
    return jnp.where(abs(frame[:, None] - frame[None, :]) <= 1, weights, 0.0)


def banded_adjacency(nodes: jax.Array, *, num_frames: int, sim_threshold: float) -> jax.Array:
    """The blocks of `adjacency` that can hold edges, in memory linear in T.

    Args:
      nodes: [B, Tk, P, D]. Tk is T, or T + 2 with one more frame before the first and after the last that attend.
      num_frames: T.
      sim_threshold: as for `adjacency`.

    Returns:
      [B, T, 3, P, P] float32: the weights from each frame's nodes to those of the frame before, of the frame itself and
      of the frame after; zeros where there is no such frame.
    """
    own = nodes[:, 1:-1] if nodes.shape[1] > num_frames else nodes
    own = _with_self_loops(_similarity(own, own, sim_threshold), own)  # [B, T, P, P]
    after = _similarity(nodes[:, :-1], nodes[:, 1:], sim_threshold)  # [B, Tk - 1, P, P]
    if nodes.shape[1] == num_frames:
        after = jnp.pad(after, [(0, 0), (1, 1), (0, 0), (0, 0)])
    # The same numbers in both directions of an edge.
    return jnp.stack([after[:, :-1].swapaxes(-1, -2), own, after[:, 1:]], axis=2)


def _similarity(left: jax.Array, right: jax.Array, sim_threshold: float) -> jax.Array:
    """Thresholded cosine similarity, float32: [..., P, D], [..., K, D] -> [..., P, K]."""
    left, right = jax.lax.stop_gradient((left, right))
    # First multiply, then divide by the norms: products of bfloat16 nodes are exact, those of rounded unit vectors not.
    similarity = jnp.einsum(
        "...pd,...kd->...pk", left, right, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    left, right = (jnp.maximum(_norm(x), _MIN_NORM) for x in (left, right))
    # Divide once, by the product of both norms: two divisions could give the two directions of an edge other weights.
    similarity = similarity / (left[..., :, None] * right[..., None, :])
    similarity = jnp.round(similarity / _RESOLUTION) * _RESOLUTION
    return jnp.where(similarity < sim_threshold, 0.0, similarity)


def _with_self_loops(weights: jax.Array, nodes: jax.Array) -> jax.Array:
    """Sets the weights of self-loops to 1, whatever the threshold; a zero token has no self-loop."""
    is_node = (_norm(jax.lax.stop_gradient(nodes)) >= _MIN_NORM).astype(jnp.float32)  # [..., P]
    return jnp.where(jnp.eye(nodes.shape[-2], dtype=bool), is_node[..., None], weights)


def _norm(nodes: jax.Array) -> jax.Array:
    return jnp.linalg.norm(nodes.astype(jnp.float32), axis=-1)
