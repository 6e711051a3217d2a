"""Spatio-temporal graph transformer: relates the tokens of neighbouring frames and condenses each frame.

Paper section 3.2, docs/model.md section 2.
Letters: B videos, T frames, G patches a side, L = 1 + G^2 tokens a frame, N = T * G^2 nodes, D width, M tokens of the
result: T * (1 + 2G) for a video, L for an image.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from stgt_jax.config import GraphConfig
from stgt_jax.models.layers import ResidualAttentionBlock, layer_norm, stack
from stgt_jax.ops.graph_attention import graph_attention
from stgt_jax.sharding import shard


class GraphAttention(nn.Module):
    """`ops.graph_attention` with linear projections: [B, N, D], with edges from [B, N, D] -> [B, N, D]."""

    config: GraphConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, nodes: jax.Array, edge_nodes: jax.Array, num_frames: int, train: bool) -> jax.Array:
        config, width = self.config, nodes.shape[-1]

        def heads(name: str) -> jax.Array:
            y = nn.Dense(width, dtype=self.dtype, name=name)(nodes)
            return shard(rearrange(y, "b n (h d) -> b n h d", h=config.num_heads), "clip", "node", "head", ...)

        y = graph_attention(
            heads("query"),
            heads("key"),
            heads("value"),
            edge_nodes,
            num_frames=num_frames,
            sim_threshold=config.sim_threshold,
            weighted=config.variant == "full",
            dropout_rate=config.dropout,
            dropout_rng=self.make_rng("dropout") if train and config.dropout > 0.0 else None,
            implementation=config.implementation,
        )
        y = nn.Dense(width, dtype=self.dtype, name="out")(rearrange(y, "b n h d -> b n (h d)"))
        return shard(y, "clip", "node", "feature")


class GraphBlock(nn.Module):
    """Attention of global tokens across frames, of local tokens over the graph, then of all tokens within their frame.

    [B, T, L, D] -> ([B, T, L, D], {"local_tokens", "edge_nodes", "graph_attention"}: the inputs of graph attention and
    its output, [B, N, D]). `vision_tokens` [B, N, D] make the edges where they are given, else the local tokens do.
    """

    config: GraphConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, vision_tokens: jax.Array | None, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        num_frames = x.shape[1]
        x = shard(nn.Dense(x.shape[-1], dtype=self.dtype, name="proj")(x), "clip", "frame", "token", "feature")

        cross_frame = ResidualAttentionBlock(self.config.num_heads, self.dtype, name="cross_frame_attention")
        global_tokens = cross_frame(cross_frame(x[:, :, 0]))  # [B, T, D], twice with the same weights

        local_tokens = _local(x)
        edge_nodes = local_tokens if vision_tokens is None else vision_tokens
        graph = GraphAttention(self.config, self.dtype, name="graph_attention")
        attended = graph(local_tokens, edge_nodes, num_frames, train)

        y = local_tokens + attended if self.config.residual else attended
        y = rearrange(y, "b (t p) d -> b t p d", t=num_frames)
        y = jnp.concatenate([global_tokens[:, :, None], y], axis=2)
        y = ResidualAttentionBlock(self.config.num_heads, self.dtype, name="within_frame_attention")(y)
        return y, {"local_tokens": local_tokens, "edge_nodes": edge_nodes, "graph_attention": attended}


class GraphTransformer(nn.Module):
    """[B, T, L, D] -> ([B, M, D], what `GraphBlock` returns beside its result, of all blocks, [layers, B, N, D])."""

    config: GraphConfig
    dtype: jnp.dtype
    scan: bool
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        num_frames, tokens, width = x.shape[1:]
        init = nn.initializers.normal(self.config.time_embed_std)
        time_embed = self.param("time_embed", init, (self.config.time_embed_rows, width))
        # A parameter, as converted weights bring their own table; never trained (docs/model.md section 2.1).
        pos_2d_embed = self.param("pos_2d_embed", lambda _: sincos_2d(math.isqrt(tokens - 1), width))
        vision_tokens = _local(x) if self.config.edges_from == "vision" else None
        x = x + _resample_rows(time_embed, num_frames)[:, None].astype(self.dtype)
        x = x + jax.lax.stop_gradient(pos_2d_embed).astype(self.dtype)

        blocks = stack(GraphBlock, self.config.num_layers, scan=self.scan, remat=self.remat, in_axes=(nn.broadcast,))
        x, intermediates = blocks(self.config, self.dtype, name="blocks")(x, vision_tokens, train)

        x = layer_norm(1e-5, self.dtype, "ln_post")(condense(x))
        x = nn.Dense(width, use_bias=False, dtype=self.dtype, name="proj")(x)
        return shard(x, "clip", "token", "feature"), intermediates


def condense(x: jax.Array) -> jax.Array:
    """For each frame the global token, the maximum of each column of patches, and the maximum of each row.

    [B, T, L, D] -> [B, T * (1 + 2G), D]. An image (T = 1) keeps all its tokens: -> [B, L, D].
    """
    if x.shape[1] == 1:
        return x[:, 0]
    local_tokens = rearrange(x[:, :, 1:], "b t (row col) d -> b t row col d", row=math.isqrt(x.shape[2] - 1))
    x = jnp.concatenate([x[:, :, :1], local_tokens.max(axis=2), local_tokens.max(axis=3)], axis=2)
    return rearrange(x, "b t l d -> b (t l) d")


def _local(x: jax.Array) -> jax.Array:
    """The nodes of the graph: [B, T, L, D] -> [B, N, D]."""
    return rearrange(x[:, :, 1:], "b t p d -> b (t p) d")


def sincos_2d(grid: int, width: int) -> jax.Array:
    """The position table [1 + grid^2, width]: zeros for the global token, else [column | row], each [sin | cos]."""
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width / 4))  # [D/4]
    angles = np.arange(grid)[:, None] * frequencies  # [G, D/4]
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # [G, D/2]
    rows, columns = np.divmod(np.arange(grid**2), grid)
    table = np.concatenate([axis[columns], axis[rows]], axis=1)
    return jnp.asarray(np.concatenate([np.zeros((1, width)), table]), jnp.float32)


def _resample_rows(table: jax.Array, num_rows: int) -> jax.Array:
    """Nearest-neighbour resampling, row floor(i * rows / T) for frame i: [rows, D] -> [T, D]."""
    return table[np.arange(num_rows) * table.shape[0] // num_rows]
