"""Scaled dot-product attention, the one place where ViT, Q-Former and the attention within and across frames get it."""

import functools
import logging
from collections.abc import Callable
from types import ModuleType

import jax
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from stgt_jax.ops import attention_gpu, attention_tpu
from stgt_jax.ops.platform import target_platform
from stgt_jax.sharding import mesh_axes, mesh_to_split_over

# The scores of smaller frames are so few that XLA's own fusions do.
_MIN_FUSED_LENGTH = 128
_KERNELS: dict[str, ModuleType] = {"tpu": attention_tpu, "gpu": attention_gpu}  # of a platform


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

    The tokens of frames, [B, T, S, heads, d], go through one fused kernel: ours on TPUs, cuDNN's on NVIDIA GPUs in 16
    bits. All else is XLA's.

    Args:
      query: [B, Sq, heads, d], or the tokens of frames [B, T, S, heads, d], which take no mask.
      key: [B, Sk, heads, d], or like `query`.
      value: [B, Sk, heads, d], or like `query`.
      mask: bool, broadcastable to [B, heads, Sq, Sk]; False hides a key. Every query must see at least one key.
      dropout_rate: share of the probabilities set to zero.
      dropout_rng: needed for dropout; None switches it off.

    Returns:
      The shape and dtype of `query`.

    Raises:
      ValueError: a mask for frames, or frames that attend to others.
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
    if query.ndim == 4:
        return jax.nn.dot_product_attention(query, key, value, mask=mask)
    if mask is not None or not query.shape == key.shape == value.shape:
        raise ValueError(f"frames attend to themselves without a mask; got {query.shape}, {key.shape}, {value.shape}")
    return _on_each_device(_attend_within_frames, query, key, value)


def _attend_within_frames(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """[B, T, S, heads, d] each -> the same, on one device."""
    kernel = _KERNELS.get(target_platform())
    if kernel and query.shape[2] >= _MIN_FUSED_LENGTH:
        if not (unfit := kernel.unfit(query)):
            return kernel.attention(query, key, value)
        _warn(unfit)
    return jax.vmap(jax.nn.dot_product_attention)(query, key, value)


@functools.cache
def _warn(unfit: str) -> None:
    logging.getLogger(__name__).warning("attention within frames runs in plain XLA: the fused kernel %s", unfit)


def _on_each_device(attend: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Splits clips, frames and heads of arrays [B, T, S, H, d] over the mesh in use: the compiler splits no kernel."""
    mesh = mesh_to_split_over()
    if mesh is None:
        return attend(*arrays)
    batch, frames, _, heads, _ = arrays[0].shape
    spec = P(
        mesh_axes(mesh, "clip", batch),
        mesh_axes(mesh, "frame", frames),
        None,
        mesh_axes(mesh, "head", heads),
        None,
    )
    return jax.shard_map(attend, in_specs=(spec,) * len(arrays), out_specs=spec, check_vma=False)(*arrays)
