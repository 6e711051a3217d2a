"""Graph attention as the formula is written, with an N x N matrix for every head. The others are tested against it."""

import jax
import jax.numpy as jnp

from stgt_jax.ops.graph_attention.dropout import keep_scale
from stgt_jax.ops.graph_attention.graph import NO_EDGE
from stgt_jax.ops.precision import precision_of


def dense_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, weights: jax.Array, dropout: jax.Array, dropout_rate: float
) -> jax.Array:
    """softmax((query key^T / sqrt(d)) * weights) value over the pairs whose weight is not 0.

    [B, N, H, d] each, weights [B, N, N] -> [B, N, H, d].
    """
    weights = weights[:, None]  # the same graph for every head
    precision = precision_of(query.dtype)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision=precision, preferred_element_type=jnp.float32)
    scores *= query.shape[-1] ** -0.5
    scores = jnp.where(weights != 0, scores * weights, NO_EDGE)
    # The second `where` is for nodes without an edge: the softmax alone would make their rows uniform.
    probabilities = jnp.where(weights != 0, jax.nn.softmax(scores, axis=-1), 0.0)
    if dropout_rate > 0.0:
        batch, num_nodes, heads, _ = query.shape
        clip, head, row, column = jnp.ogrid[:batch, :heads, :num_nodes, :num_nodes]
        probabilities *= keep_scale(dropout, clip, head, row, column, dropout_rate)
    return jnp.einsum("bhqk,bkhd->bqhd", probabilities.astype(value.dtype), value, precision=precision)
