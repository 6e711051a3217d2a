"""BLIP-2 Q-Former: one BERT whose learned queries read the vision tokens, under three attention patterns (paper
Figure 2, docs/model.md section 3).

Unimodal: queries and text never meet. Matching: both see each other. Grounded generation: the text is causal and sees
the queries, here through the queries' hidden states of every layer, computed once in the unimodal pass.
Letters: B batch, M vision tokens, Q queries, S text length, H width, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from stgt_jax.config import QFormerConfig
from stgt_jax.models.layers import MlpBlock, MultiHeadAttention, gelu, layer_norm, stack
from stgt_jax.sharding import shard

_EPSILON = 1e-12  # of every LayerNorm in BERT


class QFormerLayer(nn.Module):
    """Self attention over queries and text, cross attention from the queries, a feed-forward each; all post-norm.

    Either of `queries` [B, Q, H] and `text` [B, S, H] may be None. `query_states` [B, Q, H] are the queries of an
    earlier pass at this layer, seen by the text.
    """

    config: QFormerConfig
    dtype: jnp.dtype
    cross_attention: bool

    @nn.compact
    def __call__(self, queries, text, vision_tokens, query_states, mask, train):
        config = self.config

        def add_norm(x: jax.Array, branch: jax.Array, name: str) -> jax.Array:
            branch = nn.Dropout(config.dropout, deterministic=not train)(branch)
            return layer_norm(_EPSILON, self.dtype, name)(x + branch)

        def attention(name: str) -> MultiHeadAttention:
            return MultiHeadAttention(config.num_heads, self.dtype, config.dropout, name=name)

        x = _concatenate(queries, text)
        context = _concatenate(query_states, x)
        x = add_norm(x, attention("attention")(x, context, mask=mask, train=train), "attention_norm")
        if queries is not None:
            queries, text = x[:, : queries.shape[1]], None if text is None else x[:, queries.shape[1] :]
            if self.cross_attention:
                seen = attention("cross_attention")(queries, vision_tokens, train=train)
                queries = add_norm(queries, seen, "cross_attention_norm")
            queries = add_norm(queries, MlpBlock(config.mlp_dim, gelu, self.dtype, name="query_mlp")(queries),
                               "query_mlp_norm")  # fmt: skip
        else:
            text = x
        if text is not None:
            text = add_norm(text, MlpBlock(config.mlp_dim, gelu, self.dtype, name="text_mlp")(text), "text_mlp_norm")
        return queries, text


class QFormerGroup(nn.Module):
    """`num_layers` layers, the first with cross attention; carries (queries, text), gives every layer's own queries."""

    config: QFormerConfig
    dtype: jnp.dtype
    num_layers: int

    @nn.compact
    def __call__(self, carry, query_states, vision_tokens, mask, train):
        queries, text = carry
        incoming = []
        for i in range(self.num_layers):
            incoming.append(queries)
            layer = QFormerLayer(self.config, self.dtype, cross_attention=i == 0, name=f"layer_{i}")
            states = None if query_states is None else query_states[i]
            queries, text = layer(queries, text, vision_tokens, states, mask, train)
        return (queries, text), incoming


class QFormer(nn.Module):
    """The shared weights and the attention patterns that use them."""

    config: QFormerConfig
    dtype: jnp.dtype
    scan: bool
    remat: bool

    def setup(self) -> None:
        config = self.config
        init = nn.initializers.normal(0.02)
        self.word_embed = nn.Embed(config.vocab_size, config.width, embedding_init=init, dtype=self.dtype)
        self.pos_embed = nn.Embed(config.max_text_length, config.width, embedding_init=init, dtype=self.dtype)
        self.query_tokens = self.param("query_tokens", init, (1, config.num_queries, config.width))
        self.embed_norm = layer_norm(_EPSILON, self.dtype)
        self.embed_dropout = nn.Dropout(config.dropout)
        num_groups, num_tail = divmod(config.depth, config.cross_attention_freq)
        if num_groups:
            groups = stack(QFormerGroup, num_groups, scan=self.scan, remat=self.remat,
                           in_axes=(0, nn.broadcast, nn.broadcast))  # fmt: skip
            self.groups = groups(config, self.dtype, config.cross_attention_freq)
        if num_tail:  # a depth that is no multiple of cross_attention_freq ends in the beginning of a group
            self.tail = QFormerGroup(config, self.dtype, num_tail)
        self.lm_dense = nn.Dense(config.width, dtype=self.dtype)
        self.lm_norm = layer_norm(_EPSILON, self.dtype)
        self.lm_bias = self.param("lm_bias", nn.initializers.zeros, (config.vocab_size,))

    def encode_queries(self, vision_tokens: jax.Array, *, train: bool = False) -> tuple[jax.Array, Any]:
        """Unimodal, vision side: [B, M, D] -> (query states [B, Q, H], the cache that `decode` takes)."""
        (queries, _), cache = self._layers(self._queries(vision_tokens, train), None, vision_tokens, train=train)
        return queries, cache

    def encode_text(self, input_ids: jax.Array, attention_mask: jax.Array, *, train: bool = False) -> jax.Array:
        """Unimodal, text side: ids and mask [B, S] -> text states [B, S, H]."""
        mask = attention_mask[:, None, None, :].astype(bool)
        return self._layers(None, self._text(input_ids, train), mask=mask, train=train)[0][1]

    def match(
        self, vision_tokens: jax.Array, input_ids: jax.Array, attention_mask: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """Matching: queries and text see each other. ([B, M, D], [B, S], [B, S]) -> query states [B, Q, H]."""
        queries = self._queries(vision_tokens, train)
        seen = jnp.concatenate([jnp.ones(queries.shape[:2], bool), attention_mask.astype(bool)], axis=1)
        text = self._text(input_ids, train)
        return self._layers(queries, text, vision_tokens, mask=seen[:, None, None, :], train=train)[0][0]

    def decode(self, cache: Any, input_ids: jax.Array, attention_mask: jax.Array, *, train: bool = False) -> jax.Array:
        """Grounded generation: causal text that sees the encoded queries. [B, S] -> next-token logits [B, S, V]."""
        batch, length = input_ids.shape
        causal = jnp.tril(jnp.ones((length, length), bool)) & attention_mask[:, None, None, :].astype(bool)
        sees_queries = jnp.ones((batch, 1, length, self.config.num_queries), bool)
        mask = jnp.concatenate([sees_queries, causal], axis=-1)
        text = self._layers(None, self._text(input_ids, train), cache=cache, mask=mask, train=train)[0][1]
        text = self.lm_norm(gelu(self.lm_dense(text)))
        return shard(self.word_embed.attend(text), "clip", "token", "word").astype(jnp.float32) + self.lm_bias

    def _queries(self, vision_tokens: jax.Array, train: bool) -> jax.Array:
        queries = self.query_tokens.astype(self.dtype)
        queries = jnp.broadcast_to(queries, (vision_tokens.shape[0], *queries.shape[1:]))
        queries = shard(queries, "clip", "token", "feature")
        return self.embed_dropout(self.embed_norm(queries), deterministic=not train)

    def _text(self, input_ids: jax.Array, train: bool) -> jax.Array:
        text = self.word_embed(input_ids) + self.pos_embed(jnp.arange(input_ids.shape[1]))
        text = shard(text, "clip", "token", "feature")
        return self.embed_dropout(self.embed_norm(text), deterministic=not train)

    def _layers(self, queries, text, vision_tokens=None, *, cache=None, mask=None, train):
        """All layers; returns ((queries, text), cache), the cache being each layer's incoming queries."""
        carry = (queries, text)
        group_cache, tail_cache = cache or (None, None)
        if self.config.depth >= self.config.cross_attention_freq:
            carry, group_cache = self.groups(carry, group_cache, vision_tokens, mask, train)
        if self.config.depth % self.config.cross_attention_freq:
            carry, tail_cache = self.tail(carry, tail_cache, vision_tokens, mask, train)
        return carry, (group_cache, tail_cache)


def _concatenate(left: jax.Array | None, right: jax.Array | None) -> jax.Array:
    """Joins two sequences [B, S, H] of which either may be absent."""
    return jnp.concatenate([x for x in (left, right) if x is not None], axis=1)
