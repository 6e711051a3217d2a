"""Scaled dot-product attention, for the ViT, the Q-Former and the attention within and across frames."""

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

_MIN_FUSED_LENGTH = 128  # tokens of a frame; for fewer, XLA's own fusions are fast enough
_KERNELS: dict[str, ModuleType] = {"tpu": attention_tpu, "gpu": attention_gpu}  # by platform


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

    Arrays with a frame dimension, [B, T, S, heads, d], run in a fused kernel where there is one: this project's own on
    TPUs, cuDNN's on NVIDIA GPUs in 16 bits. Everything else runs in plain XLA.

    Args:
      query: [B, Sq, heads, d]; or [B, T, S, heads, d], where the tokens of each frame attend to each other.
      key: [B, Sk, heads, d]; or [B, T, S, heads, d].
      value: like `key`.
      mask: bool, broadcastable to [B, heads, Sq, Sk]; False hides a key. Every query must see at least one key. Frames
        take no mask.
      dropout_rate: share of the probabilities set to zero.
      dropout_rng: a key for dropout; without one there is no dropout.

    Returns:
      The shape and dtype of `query`.

    Raises:
      ValueError: frames were given a mask, or keys and values of another shape than the queries.
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
        raise ValueError(
            f"frames take no mask, and query, key and value of one shape; got {query.shape}, {key.shape}, {value.shape}"
        )
    return _on_each_device(_attend_within_frames, query, key, value)


def _attend_within_frames(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """[B, T, S, heads, d] each -> the same shape, on one device."""
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
