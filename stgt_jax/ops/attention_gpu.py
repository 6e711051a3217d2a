"""Attention among the tokens of a frame on NVIDIA GPUs: cuDNN's fused kernel, called through jax.nn.

JAX refuses to differentiate this kernel for an odd number of tokens, because it mistakes a missing bias for a given one
(0.10 and 0.11). Where a gradient is needed, an odd frame is therefore padded with one token, to which nothing attends.
Letters: B clips, T frames, S tokens, H heads of width d.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from stgt_jax.ops.platform import target_platform, unfit_gpu

_MAX_HEAD_DIM = 128


def unfit(query: jax.Array) -> str:
    """Why cuDNN cannot take `query` [B, T, S, H, d] on the device in use; empty where it can."""
    head_dim = query.shape[-1]
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        return f"takes bfloat16 or float16, not {query.dtype}"
    if head_dim % 8 or head_dim > _MAX_HEAD_DIM:
        return f"takes head widths that are multiples of 8 up to {_MAX_HEAD_DIM}, not {head_dim}"
    return unfit_gpu()


@jax.custom_vjp
def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Like `ops.attention.attention` for frames, [B, T, S, H, d] each; other platforms compute it in plain XLA."""
    return _attend(query, key, value)


def _attend(query: jax.Array, key: jax.Array, value: jax.Array, num_keys: int | None = None) -> jax.Array:
    """Attends to the first `num_keys` keys of each frame, by default to all."""
    batch, frames = query.shape[:2]
    out = jax.nn.dot_product_attention(
        *(rearrange(x, "b t s h d -> (b t) s h d") for x in (query, key, value)),
        key_value_seq_lengths=None if num_keys is None else jnp.full(batch * frames, num_keys),
        implementation="cudnn" if target_platform() == "gpu" else "xla",
    )
    return rearrange(out, "(b t) s h d -> b t s h d", b=batch)


def _attend_even(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    tokens = query.shape[2]
    if tokens % 2 == 0:
        return _attend(query, key, value)
    query, key, value = (jnp.pad(x, [(0, 0), (0, 0), (0, 1), (0, 0), (0, 0)]) for x in (query, key, value))
    return _attend(query, key, value, num_keys=tokens)[:, :, :tokens]


def _backward(pull_back: jax.tree_util.Partial, d_out: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return pull_back(d_out)


attention.defvjp(lambda *arrays: jax.vjp(_attend_even, *arrays), _backward)
