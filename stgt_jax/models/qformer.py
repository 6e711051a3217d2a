"""BLIP-2's Q-Former: one BERT with learned queries, used under three attention patterns.

Paper Figure 2, docs/model.md section 3.
Queries read the vision tokens by cross-attention, and share their self-attention with the text. An attention pattern is
a mask of that self-attention: `unimodal_mask`, `matching_mask` or `generation_mask`.
Letters: B batch, P video-text pairs, M vision tokens, Q queries, S text length, H width, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from stgt_jax.config import QFormerConfig
from stgt_jax.models.layers import Memory, MlpBlock, MultiHeadAttention, gelu, layer_norm, stack
from stgt_jax.sharding import shard


class Streams(NamedTuple):
    """The hidden states of queries and text; None where a pass runs without them."""

    queries: jax.Array | None  # [B, Q, H]
    text: jax.Array | None  # [B, S, H]

    def joined(self) -> jax.Array:
        """Both as one sequence, the queries first: [B, Q + S, H]."""
        return jnp.concatenate([x for x in self if x is not None], axis=1)

    def split(self, joined: jax.Array) -> "Streams":
        """Takes a sequence of these streams' lengths apart: the inverse of `joined`."""
        if self.queries is None:
            return Streams(None, joined)
        num_queries = self.queries.shape[1]
        return Streams(joined[:, :num_queries], None if self.text is None else joined[:, num_queries:])


QueryStates = Sequence[jax.Array | None]  # the queries that entered each layer of a group: [B, Q, H], or None


class QueryCache(NamedTuple):
    """The query states that entered each layer in `encode_queries`; `decode` lets the text attend to them."""

    groups: QueryStates | None  # of the repeated groups of layers, [num_groups, B, Q, H] each
    tail: QueryStates | None  # of the layers after the last whole group


def unimodal_mask(attention_mask: jax.Array) -> jax.Array:
    """Text sees text, without padding: [B, S] -> [B, 1, 1, S].

    The queries run without the text, so the two never meet; they see each other, which takes no mask.
    """
    return attention_mask[:, None, None, :].astype(bool)


def matching_mask(attention_mask: jax.Array, num_queries: int) -> jax.Array:
    """Queries and text see the queries, and the text without padding: [B, S] -> [B, 1, 1, Q + S]."""
    queries = jnp.ones((attention_mask.shape[0], num_queries), bool)
    return jnp.concatenate([queries, attention_mask.astype(bool)], axis=1)[:, None, None, :]


def generation_mask(attention_mask: jax.Array, num_queries: int) -> jax.Array:
    """Text sees the queries, and the text up to its own position: [B, S] -> [B, 1, S, Q + S].

    The queries do not see the text, so they are those of the unimodal pass and do not run again.
    """
    batch, length = attention_mask.shape
    causal = jnp.tril(jnp.ones((length, length), bool)) & attention_mask[:, None, None, :].astype(bool)
    queries = jnp.ones((batch, 1, length, num_queries), bool)
    return jnp.concatenate([queries, causal], axis=-1)


class QFormerLayer(nn.Module):
    """Self-attention of both streams, cross-attention of the queries, and a feed-forward for each stream; post-norm.

    Where `cached_queries` [B, Q, H] is given, the streams attend to them as well. With `memory`, the text comes one
    token after the other (`MultiHeadAttention`), and `cached_queries` with the first.
    """

    config: QFormerConfig
    dtype: jnp.dtype
    cross_attention: bool

    @nn.compact
    def __call__(
        self,
        streams: Streams,
        vision_tokens: jax.Array | None,
        cached_queries: jax.Array | None,
        mask: jax.Array | None,
        memory: Memory | None,
        train: bool,
    ) -> Streams:
        config = self.config

        def add_norm(x: jax.Array, branch: jax.Array, name: str) -> jax.Array:
            branch = nn.Dropout(config.dropout, deterministic=not train)(branch)
            return layer_norm(config.norm_epsilon, self.dtype, name)(x + branch)

        def attention(name: str) -> MultiHeadAttention:
            return MultiHeadAttention(config.num_heads, self.dtype, config.dropout, name=name)

        def feed_forward(name: str, x: jax.Array) -> jax.Array:
            return add_norm(x, MlpBlock(config.mlp_dim, gelu, self.dtype, name=name)(x), f"{name}_norm")

        x, attend = streams.joined(), attention("attention")
        if memory is not None:
            if cached_queries is not None:
                attend(cached_queries, memory=Memory(0, memory.length))  # for their keys and values alone
            y = attend(x, mask=mask, memory=memory)
        else:
            context = x if cached_queries is None else jnp.concatenate([cached_queries, x], axis=1)
            y = attend(x, context, mask=mask, train=train)
        queries, text = streams.split(add_norm(x, y, "attention_norm"))
        if queries is not None:
            if self.cross_attention:
                assert vision_tokens is not None
                y = attention("cross_attention")(_by_video(queries, vision_tokens), vision_tokens, train=train)
                y = y.reshape(queries.shape)
                queries = add_norm(queries, y, "cross_attention_norm")
            queries = feed_forward("query_mlp", queries)
        if text is not None:
            text = feed_forward("text_mlp", text)
        return Streams(queries, text)


def _by_video(queries: jax.Array, vision_tokens: jax.Array) -> jax.Array:
    """The queries of all texts of a video as one sequence: [P, Q, H], [B, M, D] -> [B, P / B * Q, H]."""
    return rearrange(queries, "(b n) q h -> b (n q) h", b=len(vision_tokens))


class QFormerGroup(nn.Module):
    """`num_layers` layers, the first with cross-attention: -> (streams, the queries that entered each layer)."""

    config: QFormerConfig
    dtype: jnp.dtype
    num_layers: int

    @nn.compact
    def __call__(
        self,
        streams: Streams,
        cached_queries: QueryStates | None,
        vision_tokens: jax.Array | None,
        mask: jax.Array | None,
        memory: Memory | None,
        train: bool,
    ) -> tuple[Streams, QueryStates]:
        incoming = []
        for i in range(self.num_layers):
            incoming.append(streams.queries)
            layer = QFormerLayer(self.config, self.dtype, cross_attention=i == 0, name=f"layer_{i}")
            cached = None if cached_queries is None else cached_queries[i]
            streams = layer(streams, vision_tokens, cached, mask, memory, train)
        return streams, incoming


class QFormer(nn.Module):
    """The shared weights, and a method for each pass over them."""

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
        self.embed_norm = layer_norm(config.norm_epsilon, self.dtype)
        self.embed_dropout = nn.Dropout(config.dropout)
        num_groups, num_tail = divmod(config.depth, config.cross_attention_freq)
        if num_groups:
            groups = stack(QFormerGroup, num_groups, scan=self.scan, remat=self.remat,
                           in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast))  # fmt: skip
            self.groups = groups(config, self.dtype, config.cross_attention_freq)
        if num_tail:  # a depth that is no multiple of cross_attention_freq ends with the first layers of a group
            self.tail = QFormerGroup(config, self.dtype, num_tail)
        self.lm_dense = nn.Dense(config.width, dtype=self.dtype)
        self.lm_norm = layer_norm(config.norm_epsilon, self.dtype)
        self.lm_bias = self.param("lm_bias", nn.initializers.zeros, (config.vocab_size,))

    def encode_queries(self, vision_tokens: jax.Array, *, train: bool = False) -> tuple[jax.Array, QueryCache]:
        """Unimodal pass of the queries: [B, M, D] -> (query states [B, Q, H], the cache for `decode`)."""
        streams = Streams(self._queries(len(vision_tokens), train), None)
        streams, cache = self._layers(streams, vision_tokens=vision_tokens, train=train)
        assert streams.queries is not None
        return streams.queries, cache

    def encode_text(self, input_ids: jax.Array, attention_mask: jax.Array, *, train: bool = False) -> jax.Array:
        """Unimodal pass of the text: ids and mask [B, S] -> text states [B, S, H]."""
        streams = Streams(None, self._text(input_ids, train))
        streams, _ = self._layers(streams, mask=unimodal_mask(attention_mask), train=train)
        assert streams.text is not None
        return streams.text

    def match(
        self, vision_tokens: jax.Array, input_ids: jax.Array, attention_mask: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """Matching pass: [B, M, D], ids and mask [P, S], P / B of each video -> query states [P, Q, H]."""
        mask = matching_mask(attention_mask, self.config.num_queries)
        streams = Streams(self._queries(len(input_ids), train), self._text(input_ids, train))
        streams, _ = self._layers(streams, vision_tokens=vision_tokens, mask=mask, train=train)
        assert streams.queries is not None
        return streams.queries

    def decode(
        self,
        cache: QueryCache,
        input_ids: jax.Array,
        attention_mask: jax.Array,
        *,
        positions: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Grounded generation: a cache, ids and mask [B, S] -> next-token logits [B, S, V], float32.

        With `positions` [B, R] only those after these tokens, [B, R, V]: the head costs more than the layers do.
        """
        mask = generation_mask(attention_mask, self.config.num_queries)
        streams = Streams(None, self._text(input_ids, train))
        streams, _ = self._layers(streams, cache=cache, mask=mask, train=train)
        text = streams.text
        if positions is not None:
            assert text is not None
            text = jnp.take_along_axis(text, positions[..., None], axis=1)
        return self._next_token(text)

    def decode_step(
        self, cache: QueryCache | None, tokens: jax.Array, position: jax.Array | int, *, length: int
    ) -> jax.Array:
        """One step of `decode`: the tokens [B] at `position` of captions of `length` -> next-token logits [B, V].

        The keys and values of all positions are kept in the variables "cache"; those of the queries, too, which are
        given with the first token alone.
        """
        num_queries = self.config.num_queries
        memory = Memory(num_queries + position, num_queries + length)
        mask = (jnp.arange(memory.length) <= memory.position)[None, None, None]  # [1, 1, 1, Q + S]
        text = self.word_embed(tokens[:, None]) + self.pos_embed(jnp.asarray(position)[None])
        streams = Streams(None, self.embed_norm(shard(text, "clip", "token", "feature")))
        streams, _ = self._layers(streams, cache=cache, mask=mask, memory=memory, train=False)
        return self._next_token(streams.text)[:, 0]

    def _next_token(self, text: jax.Array | None) -> jax.Array:
        text = self.lm_norm(gelu(self.lm_dense(text)))
        return shard(self.word_embed.attend(text), "clip", "token", "word").astype(jnp.float32) + self.lm_bias

    def _queries(self, batch: int, train: bool) -> jax.Array:
        queries = self.query_tokens.astype(self.dtype)
        queries = jnp.broadcast_to(queries, (batch, *queries.shape[1:]))
        queries = shard(queries, "clip", "token", "feature")
        return self.embed_dropout(self.embed_norm(queries), deterministic=not train)

    def _text(self, input_ids: jax.Array, train: bool) -> jax.Array:
        text = self.word_embed(input_ids) + self.pos_embed(jnp.arange(input_ids.shape[1]))
        text = shard(text, "clip", "token", "feature")
        return self.embed_dropout(self.embed_norm(text), deterministic=not train)

    def _layers(
        self,
        streams: Streams,
        *,
        vision_tokens: jax.Array | None = None,
        cache: QueryCache | None = None,
        mask: jax.Array | None = None,
        memory: Memory | None = None,
        train: bool,
    ) -> tuple[Streams, QueryCache]:
        """All layers; the cache returned holds the queries that entered each of them."""
        groups, tail = cache or (None, None)
        if self.config.depth >= self.config.cross_attention_freq:
            streams, groups = self.groups(streams, groups, vision_tokens, mask, memory, train)
        if self.config.depth % self.config.cross_attention_freq:
            streams, tail = self.tail(streams, tail, vision_tokens, mask, memory, train)
        return streams, QueryCache(groups, tail)
