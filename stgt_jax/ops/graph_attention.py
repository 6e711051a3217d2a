"""Graph attention: the weights of a cosine-similarity graph over neighbouring frames, multiplied into attention scores.

The nodes are the P local tokens of T frames, N = T * P, frame after frame. The graph is never learned: it is computed
from the nodes under a stop-gradient. Source: paper section 3.2 and SPEC section 2, step 3.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

# The score of a pair without an edge: far below any real score, yet finite, so that a row without edges stays finite.
_NO_EDGE = -1e30
_MIN_NORM = 1e-8


def graph_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    nodes: jax.Array,
    *,
    num_frames: int,
    sim_threshold: float,
    weighted: bool = True,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    implementation: str = "banded",
) -> jax.Array:
    """softmax((query key^T / sqrt(d)) * A) value over the edges of the graph A, the softmax in float32.

    A node without any edge (a zero token) gets zeros.

    Args:
      query: [B, N, heads, d].
      key: [B, N, heads, d].
      value: [B, N, heads, d].
      nodes: [B, N, D], what the graph is computed from; no gradient flows into it.
      num_frames: T, which must divide N.
      sim_threshold: cosine similarities below it are no edge.
      weighted: False attends over the same edges without multiplying their weights in (ablation).
      dropout_rate: share of the probabilities set to zero.
      dropout_rng: needed for dropout; None switches it off.
      implementation: "dense", the formula as written with its N x N matrices, or "banded", only the blocks of
        neighbouring frames: linear in T. With dropout the two draw different masks.

    Returns:
      [B, N, heads, d] in the dtype of `query`.

    Raises:
      ValueError: num_frames does not divide N, or the implementation is unknown.
    """
    num_nodes = nodes.shape[1]
    if num_nodes % num_frames:
        raise ValueError(f"num_frames={num_frames} does not divide the {num_nodes} nodes")
    if implementation == "dense":
        weights = adjacency(nodes, num_frames=num_frames, sim_threshold=sim_threshold)  # [B, N, N]
        return _attend(query, key, value, weights, weighted, dropout_rate, dropout_rng)
    if implementation == "banded":
        return _banded(query, key, value, nodes, num_frames, sim_threshold, weighted, dropout_rate, dropout_rng)
    raise ValueError(f"implementation='{implementation}' is unknown; use 'dense' or 'banded'")


def adjacency(nodes: jax.Array, *, num_frames: int, sim_threshold: float) -> jax.Array:
    """The weighted graph: thresholded cosine similarities inside the band of neighbouring frames.

    Args:
      nodes: [B, N, D].
      num_frames: T; two nodes can have an edge if their frames differ by at most one.
      sim_threshold: similarities below it become 0, and 0 is no edge.

    Returns:
      [B, N, N] float32. Every node but a zero token has a self-loop of weight 1.
    """
    weights = _similarity(nodes, nodes, sim_threshold)  # [B, N, N]
    frame = jnp.arange(num_frames).repeat(nodes.shape[1] // num_frames)  # [N]
    return jnp.where(abs(frame[:, None] - frame[None, :]) <= 1, _with_self_loops(weights, nodes), 0.0)


def _banded(query, key, value, nodes, num_frames, sim_threshold, weighted, dropout_rate, dropout_rng):
    """Each frame's nodes against a window of the frame itself and its two neighbours."""
    query, key, value, nodes = (
        rearrange(x, "b (t p) ... -> b t p ...", t=num_frames) for x in (query, key, value, nodes)
    )
    # Beyond the clip's ends stand zero tokens: their similarity is 0, so they have no edge and need no mask.
    own = _with_self_loops(_similarity(nodes, nodes, sim_threshold), nodes)  # [B, T, P, P]
    sides = [_similarity(nodes, _neighbours(nodes, shift), sim_threshold) for shift in _shifts(num_frames)]
    weights = jnp.concatenate([own, *sides], axis=-1)  # [B, T, P, 3P]
    out = _attend(query, _window(key), _window(value), weights, weighted, dropout_rate, dropout_rng)
    return rearrange(out, "b t p h d -> b (t p) h d")


def _attend(query, key, value, weights, weighted, dropout_rate, dropout_rng):
    """Attention over weighted edges: [..., P, h, d] on [..., K, h, d] with weights [..., P, K]."""
    weights = weights[..., None, :, :]  # the same graph for every head
    edges = weights != 0
    scores = jnp.einsum("...phd,...khd->...hpk", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    scores = jnp.where(edges, scores * weights if weighted else scores, _NO_EDGE)
    # The second `where` empties the rows of nodes without an edge, which the softmax makes uniform.
    probabilities = jnp.where(edges, jax.nn.softmax(scores, axis=-1), 0.0)
    if dropout_rng is not None and dropout_rate > 0.0:
        keep = jax.random.bernoulli(dropout_rng, 1.0 - dropout_rate, probabilities.shape)
        probabilities = jnp.where(keep, probabilities / (1.0 - dropout_rate), 0.0)
    return jnp.einsum("...hpk,...khd->...phd", probabilities.astype(value.dtype), value)


def _similarity(left, right, sim_threshold):
    """Thresholded cosine similarity, float32: [..., P, D], [..., K, D] -> [..., P, K]."""
    similarity = jnp.einsum("...pd,...kd->...pk", _unit(left), _unit(right), precision=jax.lax.Precision.HIGHEST)
    return jnp.where(similarity < sim_threshold, 0.0, similarity)


def _unit(nodes):
    nodes = jax.lax.stop_gradient(nodes).astype(jnp.float32)
    return nodes / jnp.maximum(jnp.linalg.norm(nodes, axis=-1, keepdims=True), _MIN_NORM)


def _with_self_loops(weights, nodes):
    """Writes the exact similarity of a node with itself: rounding must not let a threshold of 1 cut the self-loop."""
    is_node = jnp.linalg.norm(jax.lax.stop_gradient(nodes).astype(jnp.float32), axis=-1) >= _MIN_NORM  # [..., P]
    return jnp.where(jnp.eye(nodes.shape[-2], dtype=bool), is_node[..., None].astype(jnp.float32), weights)


def _shifts(num_frames):
    return (-1, 1) if num_frames > 1 else ()


def _neighbours(x, shift):
    """x[:, t + shift] for every frame t, zeros beyond the ends: [B, T, ...] -> the same."""
    zeros = jnp.zeros_like(x[:, :1])
    return jnp.concatenate([zeros, x[:, :-1]] if shift < 0 else [x[:, 1:], zeros], axis=1)


def _window(x):
    """[B, T, P, ...] -> [B, T, 3P, ...]: the frame itself, the one before, the one after."""
    return jnp.concatenate([x, *(_neighbours(x, shift) for shift in _shifts(x.shape[1]))], axis=2)
