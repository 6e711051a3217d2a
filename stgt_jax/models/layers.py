"""Layers that several parts of the model share.

Letters: B batch, S sequence length, K keys, D width. Parameters are float32; `dtype` is the dtype of the computation.
"""

import math
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from stgt_jax.ops.attention import attention
from stgt_jax.sharding import shard


def quick_gelu(x: jax.Array) -> jax.Array:
    """CLIP's approximation of GELU, x * sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU x Phi(x), computed in float32.

    jax.nn.gelu writes it with erfc. Compilers then split it into two passes over memory, because the expression is so
    large, and keep several arrays for the gradient. This one keeps only the slope.
    """
    return (x * _normal_cdf(x)).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    y = x.astype(jnp.float32)
    slope = _normal_cdf(x) + y * jnp.exp(-0.5 * y * y) / math.sqrt(2.0 * math.pi)
    return gelu(x), dx * slope.astype(x.dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jax.lax.erf(x.astype(jnp.float32) * math.sqrt(0.5)))


def normalize(x: jax.Array) -> jax.Array:
    """Scales vectors to norm 1, in float32: [..., D] -> [..., D]. Zero vectors stay zero."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def layer_norm(epsilon: float, dtype: jnp.dtype, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm with float32 statistics. The variance takes two passes: E[x^2] - E[x]^2 cancels for large means."""
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)


def stack(
    block: type[nn.Module], length: int, *, scan: bool, remat: bool, in_axes: tuple = (), takes_train: bool = True
) -> Callable[..., nn.Module]:
    """Repeats a block `length` times, with its parameters stacked along a leading layer axis.

    `block.__call__(carry, *inputs, train)` returns (carry, output); with `takes_train=False` it has no `train`.
    `in_axes` says for each of `inputs` whether it has a layer axis (0) or is the same for all layers (nn.broadcast).
    `scan` runs the layers as a loop instead of unrolled, `remat` recomputes them in the backward pass; neither changes
    parameters or results.
    """
    if remat:
        static = (len(in_axes) + 2,) if takes_train else ()
        block = nn.remat(block, prevent_cse=not scan, static_argnums=static)
    return nn.scan(
        block,
        variable_axes={"params": 0, "cache": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(*in_axes, nn.broadcast) if takes_train else in_axes,
        length=length,
        unroll=1 if scan else length,
    )


@flax.struct.dataclass
class Memory:
    """Where the next tokens stand among those whose keys and values are kept."""

    position: jax.Array | int  # of the first of them
    length: int = flax.struct.field(pytree_node=False)  # tokens that there is room for


class MultiHeadAttention(nn.Module):
    """Attention from `x` to `context`, or to `x` itself, with linear projections.

    [B, S, D], [B, K, any width] -> [B, S, D]. `mask` broadcasts to [B, heads, S, K]; False hides a key. Or [B, T, S, D]
    -> the same shape, where the tokens of each frame attend to each other, without context and mask.

    With `memory`, tokens come one after the other: the keys and values of `x` are written at `memory.position` of the
    variables "cache", which hold `memory.length` of them, and `x` attends to all that are there. `mask` then hides
    those not yet written.
    """

    num_heads: int
    dtype: jnp.dtype
    dropout: float = 0.0
    key_bias: bool = True

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        train: bool = False,
        memory: Memory | None = None,
    ) -> jax.Array:
        context = x if context is None else context
        width = x.shape[-1]

        def heads(name: str, y: jax.Array, use_bias: bool = True) -> jax.Array:
            y = nn.Dense(width, use_bias=use_bias, dtype=self.dtype, name=name)(y)
            return rearrange(shard(y, "clip", ..., "hidden"), "... s (h d) -> ... s h d", h=self.num_heads)

        use_dropout = train and self.dropout > 0.0
        keys, values = heads("key", context, self.key_bias), heads("value", context)
        if memory is not None:
            keys, values = self._remember("keys", keys, memory), self._remember("values", values, memory)
        y = attention(
            heads("query", x),
            keys,
            values,
            mask=mask,
            dropout_rate=self.dropout,
            dropout_rng=self.make_rng("dropout") if use_dropout else None,
        )
        y = nn.Dense(width, dtype=self.dtype, name="out")(rearrange(y, "... s h d -> ... s (h d)"))
        return shard(y, "clip", ..., "feature")

    def _remember(self, name: str, new: jax.Array, memory: Memory) -> jax.Array:
        """Writes [B, S, heads, width] to its place among those that came before; returns all."""
        shape = (new.shape[0], memory.length, *new.shape[2:])
        kept = self.variable("cache", name, jnp.zeros, shape, new.dtype)
        kept.value = jax.lax.dynamic_update_slice_in_dim(kept.value, new, memory.position, axis=1)
        return kept.value


class MlpBlock(nn.Module):
    """Two linear layers with an activation between: [..., D] -> [..., D]."""

    mlp_dim: int
    activation: Callable[[jax.Array], jax.Array]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = shard(nn.Dense(self.mlp_dim, dtype=self.dtype, name="up")(x), "clip", ..., "hidden")
        y = self.activation(y)
        return shard(nn.Dense(x.shape[-1], dtype=self.dtype, name="down")(y), "clip", ..., "feature")


class ResidualAttentionBlock(nn.Module):
    """CLIP's pre-norm block, x += MHA(ln_1(x)); x += MLP(ln_2(x)) with QuickGELU and 4D hidden: [..., S, D] -> same."""

    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = layer_norm(1e-5, self.dtype, "ln_1")(x)
        x = x + MultiHeadAttention(self.num_heads, self.dtype, name="attention")(y)
        y = layer_norm(1e-5, self.dtype, "ln_2")(x)
        return x + MlpBlock(4 * x.shape[-1], quick_gelu, self.dtype, name="mlp")(y)
