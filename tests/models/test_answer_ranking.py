"""Answers by likelihood: the scores are those of the plain decoder on question and answer as one text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_for_tests import tiny

from stgt_jax.models.answer_ranking import TokenizedAnswers, rank_answers
from stgt_jax.models.stgt import STGT, param_shapes

SEP = 3
ANSWERS = [[7], [8, 9], [8], [10, 11, 12], [13]]
QUESTIONS = [[20, 21, 22], [23], [24, 25, 26, 27], [28, 29]]  # two about each of two videos


def padded(rows, length):
    ids = np.array([row + [0] * (length - len(row)) for row in rows], np.int32)
    return ids, (np.arange(length) < np.array([len(row) for row in rows])[:, None]).astype(np.int32)


@pytest.fixture(scope="module")
def scores():
    """The likelihood of every answer to every question, [4, 5], by `rank_answers` and by the plain decoder."""
    model, rng = STGT(tiny()), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(leaf.dtype), param_shapes(model))
    video = rng.integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
    ids, mask = padded([[2, *question, SEP] for question in QUESTIONS], 7)
    answers = TokenizedAnswers(*map(jnp.asarray, padded([[*answer, SEP] for answer in ANSWERS], 4)))
    dec = model.config.qformer.dec_token_id
    texts = [[dec, *question, *answer, SEP] for question in QUESTIONS for answer in ANSWERS]

    @jax.jit
    def run():
        encoded = model.apply({"params": params}, video, method="encode_video")
        ranked = rank_answers(model, params, encoded["graph_tokens"], jnp.asarray(ids), jnp.asarray(mask), answers, 5)
        cache = jax.tree.map(lambda x: jnp.repeat(x, 2 * len(ANSWERS), axis=-3), encoded["query_cache"])
        text_ids, text_mask = map(jnp.asarray, padded(texts, 11))
        logits = model.apply({"params": params}, cache, text_ids, text_mask, method="decode")
        few = rank_answers(model, params, encoded["graph_tokens"], jnp.asarray(ids), jnp.asarray(mask), answers, 2)
        return ranked, jax.nn.log_softmax(logits), few

    (candidates, ours), steps, few = run()
    plain = [
        sum(float(steps[row, at - 1, text[at]]) for at in range(1 + len(QUESTIONS[row // len(ANSWERS)]), len(text)))
        for row, text in enumerate(texts)
    ]
    by_answer = np.take_along_axis(np.asarray(ours), np.argsort(candidates, axis=1), axis=1)
    return by_answer, np.reshape(plain, (4, 5)), (np.asarray(candidates), np.asarray(ours)), few


def test_scores_are_those_of_the_plain_decoder(scores):
    ours, plain, (candidates, ranked), _ = scores
    np.testing.assert_allclose(ours, plain, atol=1e-4)
    assert (np.diff(ranked, axis=1) <= 0).all()
    assert candidates[:, 0].tolist() == plain.argmax(axis=1).tolist()


def test_few_candidates_are_those_with_the_best_first_token(scores):
    ours, _, _, (candidates, few) = scores
    assert candidates.shape == (4, 2)
    np.testing.assert_allclose(few, np.take_along_axis(ours, np.asarray(candidates), axis=1), atol=1e-4)
