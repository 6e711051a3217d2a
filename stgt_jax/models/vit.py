"""EVA-CLIP ViT: each frame to tokens, one global [CLS] token first (SPEC section 1).

Pre-norm blocks, no bias on the keys, no final norm, no pooling.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from stgt_jax.config import VisionConfig
from stgt_jax.models.layers import MlpBlock, MultiHeadAttention, gelu, layer_norm, stack


class VisionBlock(nn.Module):
    """x += attention(norm1(x)); x += mlp(norm2(x)), each branch dropped per frame at `drop_path_rate`.

    ([B, L, D], scalar rate) -> [B, L, D].
    """

    config: VisionConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, drop_path_rate: jax.Array, train: bool) -> tuple[jax.Array, None]:
        config = self.config

        def residual(branch: jax.Array) -> jax.Array:
            branch = nn.Dropout(config.dropout, deterministic=not train)(branch)
            if not train or config.drop_path == 0.0:
                return branch
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - drop_path_rate, (branch.shape[0], 1, 1))
            return jnp.where(keep, branch / (1.0 - drop_path_rate), 0.0).astype(branch.dtype)

        attention = MultiHeadAttention(config.num_heads, self.dtype, config.dropout, key_bias=False, name="attention")
        mlp = MlpBlock(config.mlp_dim, gelu, self.dtype, config.dropout, name="mlp")
        x = x + residual(attention(layer_norm(1e-6, self.dtype, "norm1")(x), train=train))
        x = x + residual(mlp(layer_norm(1e-6, self.dtype, "norm2")(x), train=train))
        return x, None


class VisionTransformer(nn.Module):
    """Normalised frames to tokens: [B, height, width, 3] -> [B, L, D]."""

    config: VisionConfig
    dtype: jnp.dtype
    scan: bool
    remat: bool

    @nn.compact
    def __call__(self, frames: jax.Array, *, train: bool = False) -> jax.Array:
        config = self.config
        patch = (config.patch_size, config.patch_size)
        x = nn.Conv(config.width, patch, strides=patch, padding="VALID", dtype=self.dtype, name="patch_embed")(frames)
        x = x.reshape(x.shape[0], -1, config.width)  # [B, P, D]
        init = nn.initializers.truncated_normal(0.02)
        cls_token = self.param("cls_token", init, (1, 1, config.width))
        pos_embed = self.param("pos_embed", init, (1, config.tokens_per_frame, config.width))
        cls_token = jnp.broadcast_to(cls_token.astype(self.dtype), (x.shape[0], 1, config.width))
        x = jnp.concatenate([cls_token, x], axis=1) + pos_embed.astype(self.dtype)  # [B, L, D]
        train_frozen = train and not config.freeze  # what does not train has nothing to regularise
        x = nn.Dropout(config.dropout, deterministic=not train_frozen)(x)

        rates = jnp.linspace(0.0, config.drop_path, config.depth)
        split = config.depth - config.open_blocks
        x = self._blocks("blocks", x, rates[:split], train_frozen)
        if config.open_blocks:
            x = self._blocks("open_blocks", x, rates[split:], train)
        return x

    def _blocks(self, name: str, x: jax.Array, rates: jax.Array, train: bool) -> jax.Array:
        blocks = stack(VisionBlock, len(rates), scan=self.scan, remat=self.remat, in_axes=(0,))
        return blocks(self.config, self.dtype, name=name)(x, rates, train)[0]
