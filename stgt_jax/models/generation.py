"""Writes captions: greedy, by beam search, or drawn at random from the most probable words (nucleus).

All shapes are static, and the keys and values of the tokens so far are kept, so that a step computes one token.
Letters: B videos, K beams, N captions of a video, S tokens, [DEC] and [SEP] included, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stgt_jax.config import GenerationConfig, QFormerConfig
from stgt_jax.models.qformer import QueryCache
from stgt_jax.models.stgt import PAD_TOKEN_ID, STGT

_NEVER = -1e30  # a log-probability that no sum of others reaches
_Kept = Any  # the variables "cache": keys and values, [..., rows, Q + S, heads, width]


def generate(
    model: STGT,
    params: Any,
    query_cache: QueryCache,
    config: GenerationConfig,
    rng: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Writes captions of videos.

    Args:
      model: the model.
      params: its parameters.
      query_cache: what `encode_video` returned for B videos.
      config: how captions are chosen, and their lengths.
      rng: for the method "nucleus".

    Returns:
      ids [B, N, S] int32: [DEC], the caption, [SEP], then padding; the best of the N = `config.num_captions` first.
      scores [B, N] float32: the sum of the tokens' log-probabilities; of beams over their number ** length_penalty.
    """
    decoder = _Decoder(model, params, config)
    if config.method == "beam":
        return _beams(decoder, query_cache)
    if config.method == "nucleus":
        assert rng is not None, "nucleus sampling needs an rng"
        return _one_by_one(decoder, query_cache, lambda logits, i: _draw(logits, jax.random.fold_in(rng, i), config))
    return _one_by_one(decoder, query_cache, lambda logits, i: logits.argmax(axis=-1))


class _Decoder(NamedTuple):
    model: STGT
    params: Any
    config: GenerationConfig

    @property
    def qformer(self) -> QFormerConfig:
        return self.model.config.qformer

    def first(self, query_cache: QueryCache, copies: int) -> tuple[jax.Array, _Kept]:
        """The logits after [DEC] and what is kept, `copies` rows for each video: [B * copies, V]."""
        batch = jax.tree.leaves(query_cache)[0].shape[-3]
        logits, kept = self._apply({}, query_cache, jnp.full(batch, self.qformer.dec_token_id), 0)
        return jnp.repeat(logits, copies, axis=0), jax.tree.map(lambda x: jnp.repeat(x, copies, axis=-4), kept)

    def step(self, kept: _Kept, tokens: jax.Array, position: jax.Array) -> tuple[jax.Array, _Kept]:
        """The logits after the tokens [rows] at `position`: [rows, V]."""
        return self._apply({"cache": kept}, None, tokens, position)

    def _apply(
        self, kept: Any, query_cache: QueryCache | None, tokens: jax.Array, position: jax.Array | int
    ) -> tuple[jax.Array, _Kept]:
        logits, variables = self.model.apply(
            {"params": self.params, **kept}, query_cache, tokens, position, length=self.config.max_length,
            method="decode_step", mutable=["cache"],
        )  # fmt: skip
        return jnp.asarray(logits), variables["cache"]

    def constrain(self, scores: jax.Array, ids: jax.Array, position: jax.Array) -> jax.Array:
        """Scores [rows, V] of the token at `position`, after those in ids [rows, S], under the config's limits."""
        if self.config.repetition_penalty != 1.0:
            written = jnp.arange(ids.shape[1]) < position
            seen = jnp.zeros(scores.shape, bool).at[jnp.arange(len(ids))[:, None], ids].max(written)
            penalty = self.config.repetition_penalty
            scores = jnp.where(seen, jnp.where(scores > 0, scores / penalty, scores * penalty), scores)
        too_short = position < self.config.min_length
        return scores.at[:, self.qformer.sep_token_id].add(jnp.where(too_short, _NEVER, 0.0))


def _one_by_one(
    decoder: _Decoder, query_cache: QueryCache, choose: Callable[[jax.Array, jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Chooses one token after the other for each of B * N captions."""
    config, copies = decoder.config, decoder.config.num_captions
    logits, kept = decoder.first(query_cache, copies)
    rows = logits.shape[0]
    ids = jnp.full((rows, config.max_length), PAD_TOKEN_ID, jnp.int32).at[:, 0].set(decoder.qformer.dec_token_id)

    def goes_on(state: tuple[Any, ...]) -> jax.Array:
        i, _, _, ended, _, _ = state
        return (i < config.max_length) & ~ended.all()

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        i, ids, scores, ended, logits, kept = state
        logits = decoder.constrain(logits, ids, i)
        token = jnp.where(ended, PAD_TOKEN_ID, choose(logits, i)).astype(jnp.int32)
        log_probability = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]
        scores = scores + jnp.where(ended, 0.0, log_probability)
        ids, ended = ids.at[:, i].set(token), ended | (token == decoder.qformer.sep_token_id)
        logits, kept = decoder.step(kept, token, i)
        return i + 1, ids, scores, ended, logits, kept

    state = (jnp.int32(1), ids, jnp.zeros(rows), jnp.zeros(rows, bool), logits, kept)
    _, ids, scores, *_ = jax.lax.while_loop(goes_on, step, state)
    ids, scores = ids.reshape(-1, copies, config.max_length), scores.reshape(-1, copies)
    order = jnp.argsort(-scores, axis=1)
    return jnp.take_along_axis(ids, order[..., None], axis=1), jnp.take_along_axis(scores, order, axis=1)


def _draw(logits: jax.Array, rng: jax.Array, config: GenerationConfig) -> jax.Array:
    """Draws tokens [rows] among the most probable ones, as few as have together a probability of `top_p`."""
    order = jnp.argsort(-logits, axis=-1)
    ordered = jnp.take_along_axis(logits, order, axis=-1)
    before = jnp.cumsum(jax.nn.softmax(ordered), axis=-1) - jax.nn.softmax(ordered)
    chosen = jax.random.categorical(rng, jnp.where(before < config.top_p, ordered, _NEVER))
    return jnp.take_along_axis(order, chosen[:, None], axis=-1)[:, 0]


class _Beams(NamedTuple):
    """The state of a beam search."""

    position: jax.Array  # of the next token
    ids: jax.Array  # [B, K, S] of beams that go on
    scores: jax.Array  # [B, K], sums of log-probabilities
    ended_ids: jax.Array  # [B, K, S] of the best captions that have ended
    ended_scores: jax.Array  # [B, K], over their length ** length_penalty
    logits: jax.Array  # [B * K, V]
    kept: _Kept


def _beams(decoder: _Decoder, query_cache: QueryCache) -> tuple[jax.Array, jax.Array]:
    config, width, length = decoder.config, decoder.config.num_beams, decoder.config.max_length
    logits, kept = decoder.first(query_cache, width)
    batch, sep = logits.shape[0] // width, decoder.qformer.sep_token_id
    ids = jnp.full((batch, width, length), PAD_TOKEN_ID, jnp.int32).at[..., 0].set(decoder.qformer.dec_token_id)
    first = jnp.where(jnp.arange(width) == 0, 0.0, _NEVER)  # all beams are alike: only one of them goes on at first
    start = jnp.broadcast_to(first, (batch, width))
    none = jnp.full((batch, width), _NEVER)

    def over_length(scores: jax.Array, tokens: jax.Array | int) -> jax.Array:
        return scores / jnp.asarray(tokens, jnp.float32) ** config.length_penalty

    def goes_on(state: _Beams) -> jax.Array:
        # Scores only fall, so no beam ends better than its score over the greatest length that helps it.
        best_length = length - 1 if config.length_penalty > 0 else 1
        best = over_length(state.scores.max(axis=1), best_length)
        return (state.position < length) & ~(state.ended_scores.min(axis=1) >= best).all()

    def step(state: _Beams) -> _Beams:
        i = state.position
        probabilities = jax.nn.log_softmax(state.logits)
        scores = decoder.constrain(probabilities, state.ids.reshape(-1, length), i).reshape(batch, width, -1)
        totals = (state.scores[..., None] + scores).reshape(batch, -1)
        # Twice as many as beams: at most one of each beam ends here, so enough of them go on.
        totals, places = jax.lax.top_k(totals, 2 * width)
        origins, tokens = jnp.divmod(places, scores.shape[-1])  # [B, 2K]
        ids = jnp.take_along_axis(state.ids, origins[..., None], axis=1).at[..., i].set(tokens)
        ends = tokens == sep
        ended_ids = jnp.concatenate([state.ended_ids, ids], axis=1)
        ended_scores = jnp.concatenate([state.ended_scores, jnp.where(ends, over_length(totals, i), _NEVER)], axis=1)
        ended_ids, ended_scores = _best(ended_ids, ended_scores, width)
        live, chosen = jax.lax.top_k(jnp.where(ends, _NEVER, totals), width)
        ids = jnp.take_along_axis(ids, chosen[..., None], axis=1)
        rows = jnp.arange(batch)[:, None] * width + jnp.take_along_axis(origins, chosen, axis=1)  # [B, K]
        kept = jax.tree.map(lambda x: jnp.take(x, rows.reshape(-1), axis=-4), state.kept)
        logits, kept = decoder.step(kept, ids[..., i].reshape(-1), i)
        return _Beams(i + 1, ids, live, ended_ids, ended_scores, logits, kept)

    state = jax.lax.while_loop(goes_on, step, _Beams(jnp.int32(1), ids, start, ids, none, logits, kept))
    # Beams that reached the greatest length without [SEP] count as ended there.
    ids = jnp.concatenate([state.ended_ids, state.ids], axis=1)
    live = jnp.where(state.position < length, _NEVER, over_length(state.scores, length - 1))
    return _best(ids, jnp.concatenate([state.ended_scores, live], axis=1), config.num_captions)


def _best(ids: jax.Array, scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    scores, chosen = jax.lax.top_k(scores, count)
    return jnp.take_along_axis(ids, chosen[..., None], axis=1), scores
