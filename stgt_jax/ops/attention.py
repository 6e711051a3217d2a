"""Scaled dot-product attention, the one place where ViT, Q-Former and the attention within and across frames get it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from stgt_jax.ops import attention_tpu
from stgt_jax.ops.platform import target_platform
from stgt_jax.sharding import BATCH_AXES, HEAD_AXES, SEQUENCE_AXES, axes_that_divide, mesh_to_split_over

# Frames, not queries or captions: the scores of shorter sequences are so few that XLA's own fusions do.
_MIN_FUSED_LENGTH = 128
_CUDNN_MAX_HEAD_DIM = 128


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

    Long sequences among themselves, without mask and dropout, go through one fused kernel: ours on TPUs, cuDNN's on
    NVIDIA GPUs in 16 bits. All else is XLA's.

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
    if dropout_rng is not None and dropout_rate > 0.0:
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
    if mask is None and query.shape == key.shape and query.shape[1] >= _MIN_FUSED_LENGTH:
        if target_platform() == "tpu" and not attention_tpu.unfit(query):
            return _on_each_device(attention_tpu.attention, query, key, value)
        if target_platform() == "gpu" and _fits_cudnn(query):
            return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
    return jax.nn.dot_product_attention(query, key, value, mask=mask)


def _fits_cudnn(query: jax.Array) -> bool:
    *_, head_dim = query.shape
    return query.dtype in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0 and head_dim <= _CUDNN_MAX_HEAD_DIM


def _on_each_device(attend: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Splits sequences and heads of arrays [B, S, H, d] over the mesh in use: the compiler cannot split a kernel."""
    mesh = mesh_to_split_over()
    if mesh is None:
        return attend(*arrays)
    batch, _, heads, _ = arrays[0].shape
    sequences = axes_that_divide(mesh, BATCH_AXES + SEQUENCE_AXES, batch)
    spec = P(sequences, None, axes_that_divide(mesh, HEAD_AXES, heads), None)
    split = jax.shard_map(attend, in_specs=(spec,) * len(arrays), out_specs=spec, check_vma=False)
    return split(*arrays)
