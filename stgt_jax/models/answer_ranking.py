"""Answers questions by the likelihood of each answer under the grounded decoder (docs/model.md section 5.4).

It needs no head of its own: the decoder reads [DEC], the question, the answer and [SEP], and the log-probabilities of
the answer's tokens and of [SEP] are summed up. Letters: B videos, n questions about each, P = B n, S tokens of a
question, A answers, R tokens of an answer with its [SEP], k candidates, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from stgt_jax.models.qformer import QueryCache
from stgt_jax.models.stgt import STGT


class TokenizedAnswers(NamedTuple):
    """A answers, each with [SEP] at its end and then padding."""

    ids: jax.Array  # [A, R] int32
    mask: jax.Array  # [A, R] int32


def rank_answers(
    model: STGT,
    params: Any,
    graph_tokens: jax.Array,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    answers: TokenizedAnswers,
    num_candidates: int,
) -> tuple[jax.Array, jax.Array]:
    """Finds the most likely answer to each question.

    All answers are compared by their first token, and the best of them by all their tokens. As the rest of an answer
    only lowers its score, an answer that is left out can at most have that of its first token.

    Args:
      model: the model.
      params: its parameters.
      graph_tokens: [B, M, D], of `encode_video`.
      input_ids: [P, S], the questions, those of a video one after the other: [CLS], the words, [SEP], padding.
      attention_mask: [P, S].
      answers: the A answers.
      num_candidates: k, answers that are compared by all their tokens.

    Returns:
      The numbers of the k candidates [P, k], and their log-likelihoods [P, k], float32, the best first.
    """
    k = min(num_candidates, len(answers.ids))
    cache = model.apply({"params": params}, graph_tokens, method="query_cache")
    cache = _repeat(cache, len(input_ids) // len(graph_tokens))
    length = attention_mask.sum(axis=1) - 1  # of [DEC] and the question's words, without [SEP]
    prefix = input_ids.at[:, 0].set(model.config.qformer.dec_token_id)
    words = (jnp.arange(prefix.shape[1]) < length[:, None]).astype(jnp.int32)
    prefix = prefix * words

    first = _log_probabilities(model, params, cache, prefix, words, (length - 1)[:, None])[:, 0]  # [P, V]
    _, candidates = jax.lax.top_k(first[:, answers.ids[:, 0]], k)  # [P, k]

    ids, mask = (x[candidates] for x in answers)  # [P, k, R]
    room = [(0, 0), (0, ids.shape[-1])]
    joined = rearrange(jnp.repeat(jnp.pad(prefix, room)[:, None], k, axis=1), "p k s -> (p k) s")
    places = rearrange(length[:, None, None] + jnp.arange(ids.shape[-1]) + jnp.zeros_like(ids), "p k r -> (p k) r")
    rows, flat, flat_mask = jnp.arange(len(joined))[:, None], *(rearrange(x, "p k r -> (p k) r") for x in (ids, mask))
    joined = joined.at[rows, places].set(flat)
    seen = (jnp.arange(joined.shape[1]) < places[:, :1] + flat_mask.sum(axis=1, keepdims=True)).astype(jnp.int32)
    steps = _log_probabilities(model, params, _repeat(cache, k), joined, seen, places - 1)  # [P k, R, V]
    scores = (jnp.take_along_axis(steps, flat[..., None], axis=-1)[..., 0] * flat_mask).sum(axis=1).reshape(-1, k)
    scores, order = jax.lax.top_k(scores, k)
    return jnp.take_along_axis(candidates, order, axis=1), scores


def _repeat(cache: QueryCache, copies: int) -> QueryCache:
    """The cache with `copies` rows for each of before."""
    return jax.tree.map(lambda x: jnp.repeat(x, copies, axis=-3), cache)


def _log_probabilities(
    model: STGT, params: Any, cache: QueryCache, ids: jax.Array, mask: jax.Array, positions: jax.Array
) -> jax.Array:
    logits = model.apply({"params": params}, cache, ids, mask, positions=positions, method="decode")
    return jax.nn.log_softmax(logits)
