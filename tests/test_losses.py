"""Matching, generation and their sum with the contrastive loss, of which see test_contrastive.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from models_for_tests import tiny

from stgt_jax.config import LossConfig
from stgt_jax.losses import matching_triples, stgt_losses, vtg_loss, vtm_loss
from stgt_jax.models.stgt import STGT


def test_vtm_labels_the_first_of_each_three_as_a_match() -> None:
    logits = jnp.array([[-9.0, 9.0], [9.0, -9.0], [9.0, -9.0]] * 2)
    assert vtm_loss(logits) < 1e-6
    assert vtm_loss(-logits) > 15


def test_triples_are_own_text_another_video_another_text() -> None:
    tokens, ids = jnp.arange(3)[:, None, None], 10 + jnp.arange(3)[:, None]
    triples = matching_triples(tokens, ids, ids + 10, jnp.array([1, 2, 0]), jnp.array([2, 0, 1]))
    assert triples.graph_tokens.ravel().tolist() == [0, 1, 0, 1, 2, 1, 2, 0, 2]
    assert triples.input_ids.ravel().tolist() == [10, 10, 12, 11, 11, 10, 12, 12, 11]
    assert triples.attention_mask.ravel().tolist() == [20, 20, 22, 21, 21, 20, 22, 22, 21]


def test_vtg_ignores_padding_and_the_first_token() -> None:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(2, 5, 7)), jnp.float32)
    ids = jnp.asarray(rng.integers(1, 7, (2, 5)))
    mask = jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    loss = vtg_loss(logits, ids, mask, label_smoothing=0.1)
    np.testing.assert_allclose(loss, vtg_loss(logits, jnp.where(mask == 0, 3, ids).at[:, 0].set(2), mask,
                                              label_smoothing=0.1))  # fmt: skip
    terms = []
    for b, s in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]:
        log_probs = np.asarray(jax.nn.log_softmax(logits[b, s]))
        terms.append(-0.9 * log_probs[ids[b, s + 1]] - 0.1 * log_probs.mean())
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)


def test_total_is_the_sum() -> None:
    model, rng = STGT(tiny()), np.random.default_rng(0)
    batch = {
        "video": jnp.asarray(rng.integers(0, 256, (4, 4, 32, 32, 3), np.uint8)),
        "input_ids": jnp.asarray(rng.integers(5, 60, (4, 8), np.int32)),
        "attention_mask": jnp.ones((4, 8), jnp.int32),
    }

    @jax.jit
    def run() -> Any:
        params = model.init(jax.random.key(0), **batch)["params"]
        return stgt_losses(model, params, batch, jax.random.key(1), LossConfig(), train=False)

    loss, metrics = run()
    expected = metrics["loss_contrastive"] + metrics["loss_vtm"] + metrics["loss_vtg"]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert 0 <= metrics["accuracy_vtm"] <= 1
