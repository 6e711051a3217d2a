"""Scaled dot-product attention, the one place where ViT, cross-frame attention and Q-Former compute a softmax."""

import jax
from flax import linen as nn


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
) -> jax.Array:
    """softmax(query key^T / sqrt(d)) value, the softmax in float32.

    Args:
      query: [B, Sq, heads, d].
      key: [B, Sk, heads, d].
      value: [B, Sk, heads, d].
      mask: bool, broadcastable to [B, heads, Sq, Sk]; False hides a key. Every query must see at least one key.
      dropout_rate: share of the probabilities set to zero.
      dropout_rng: needed for dropout; None switches it off.

    Returns:
      [B, Sq, heads, d] in the dtype of `query`.
    """
    if dropout_rng is None or dropout_rate == 0.0:
        return jax.nn.dot_product_attention(query, key, value, mask=mask)
    return nn.dot_product_attention(
        query,
        key,
        value,
        mask=mask,
        dropout_rng=dropout_rng,
        dropout_rate=dropout_rate,
        broadcast_dropout=False,
        deterministic=False,
        dtype=query.dtype,
        force_fp32_for_softmax=True,
    )
