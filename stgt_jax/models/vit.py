"""EVA-CLIP's ViT: turns each frame into tokens, the global [CLS] token first (docs/model.md section 1).

Blocks are pre-norm; keys have no bias; there is no final norm and no pooling.
Letters: B videos, T frames, P patches and L = 1 + P tokens a frame, D width.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from stgt_jax.config import VisionConfig
from stgt_jax.models.layers import MlpBlock, MultiHeadAttention, gelu, layer_norm, stack
from stgt_jax.sharding import shard


class VisionBlock(nn.Module):
    """x += attention(norm1(x)); x += mlp(norm2(x)): [B, T, L, D] -> [B, T, L, D]."""

    config: VisionConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        attention = MultiHeadAttention(self.config.num_heads, self.dtype, key_bias=False, name="attention")
        mlp = MlpBlock(self.config.mlp_dim, gelu, self.dtype, name="mlp")
        epsilon = self.config.norm_epsilon
        x = x + attention(layer_norm(epsilon, self.dtype, "norm1")(x))
        x = x + mlp(layer_norm(epsilon, self.dtype, "norm2")(x))
        return x, None


class PatchEmbed(nn.Module):
    """A convolution whose stride is its kernel size, as a matrix product: [B, T, height, width, 3] -> [B, T, P, D].

    Frames stay a dimension of their own, as in every layer before the graph, so that they can be split over devices.
    """

    config: VisionConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, video: jax.Array) -> jax.Array:
        size, width = self.config.patch_size, self.config.width
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (size, size, video.shape[-1], width))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        patches = rearrange(video, "b t (row p) (column q) c -> b t (row column) (p q c)", p=size, q=size)
        return patches @ kernel.reshape(-1, width).astype(self.dtype) + bias.astype(self.dtype)


class VisionTransformer(nn.Module):
    """Encodes normalised videos frame by frame: [B, T, height, width, 3] -> [B, T, L, D]."""

    config: VisionConfig
    dtype: jnp.dtype
    scan: bool
    remat: bool

    @nn.compact
    def __call__(self, video: jax.Array) -> jax.Array:
        config = self.config
        x = PatchEmbed(config, self.dtype, name="patch_embed")(video)
        init = nn.initializers.truncated_normal(0.02)
        cls_token = self.param("cls_token", init, (1, 1, config.width))
        of_position = nn.initializers.truncated_normal(config.pos_embed_std)
        pos_embed = self.param("pos_embed", of_position, (1, config.tokens_per_frame, config.width))
        cls_token = jnp.broadcast_to(cls_token.astype(self.dtype), (*x.shape[:2], 1, config.width))
        x = jnp.concatenate([cls_token, x], axis=2) + pos_embed.astype(self.dtype)
        x = shard(x, "clip", "frame", "token", "feature")  # [B, T, L, D]
        x = self._blocks("blocks", x, config.depth - config.open_blocks)
        return self._blocks("open_blocks", x, config.open_blocks) if config.open_blocks else x

    def _blocks(self, name: str, x: jax.Array, depth: int) -> jax.Array:
        blocks = stack(VisionBlock, depth, scan=self.scan, remat=self.remat, takes_train=False)
        return blocks(self.config, self.dtype, name=name)(x)[0]
