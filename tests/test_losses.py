"""The losses one by one: against their formulas, and what the drawn negatives must be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stgt_jax.config import LossConfig, tiny
from stgt_jax.losses import (
    csal_loss,
    csal_targets,
    sample_hard_negatives,
    similarity,
    stgt_losses,
    vtc_loss,
    vtg_loss,
    vtm_loss,
)
from stgt_jax.models.stgt import STGT


def unit(*shape: int, seed: int = 0) -> jax.Array:
    x = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32)


def test_similarity_takes_the_best_query() -> None:
    video, text = unit(3, 4, 8), unit(5, 8, seed=1)
    expected = np.stack([[max(v @ t for v in queries) for t in text] for queries in video])
    np.testing.assert_allclose(similarity(video, text), expected, rtol=1e-5)


def test_vtc_of_uninformative_logits_is_the_log_of_the_batch() -> None:
    np.testing.assert_allclose(vtc_loss(jnp.zeros((6, 6)), label_smoothing=0.1), np.log(6), rtol=1e-6)


def test_vtc_prefers_the_own_pair() -> None:
    right, wrong = 10 * jnp.eye(4), 10 * jnp.roll(jnp.eye(4), 1, axis=1)
    assert vtc_loss(right, label_smoothing=0.1) < 1.0 < vtc_loss(wrong, label_smoothing=0.1)


def test_csal_targets_share_between_like_pairs_and_ignore_unlike_ones() -> None:
    directions = jnp.eye(4)
    video = directions[jnp.array([0, 0, 1])][:, None]  # the first two clips are alike
    text = directions[jnp.array([0, 0, 1])]
    np.testing.assert_allclose(csal_targets(video, text), [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]], atol=1e-6)


def test_csal_with_hard_targets_is_vtc() -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 5)), jnp.float32)
    np.testing.assert_allclose(
        csal_loss(logits, jnp.eye(5), label_smoothing=0.1), vtc_loss(logits, label_smoothing=0.1), rtol=1e-6
    )


def test_hard_negatives_are_never_the_own_pair_and_follow_the_softmax() -> None:
    logits = jnp.array([[9.0, 2.0, 0.0], [0.0, 9.0, -1.0], [1.0, 1.0, 9.0]])
    draw = jax.vmap(lambda key: sample_hard_negatives(key, logits))
    video_for_text, text_for_video = draw(jax.random.split(jax.random.key(0), 4000))
    for drawn, rows in ((text_for_video, logits), (video_for_text, logits.T)):
        assert not (drawn == jnp.arange(3)).any()
        others = jnp.where(jnp.eye(3, dtype=bool), -jnp.inf, rows)
        shares = jax.nn.one_hot(drawn, 3).mean(axis=0)
        np.testing.assert_allclose(shares, jax.nn.softmax(others), atol=0.03)


def test_vtm_labels_the_first_third_as_matches() -> None:
    logits = jnp.array([[-9.0, 9.0]] * 2 + [[9.0, -9.0]] * 4)
    assert vtm_loss(logits) < 1e-6
    assert vtm_loss(-logits) > 15


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


@pytest.fixture(scope="module")
def run_losses():
    model = STGT(tiny())
    rng = np.random.default_rng(0)
    batch = {
        "video": jnp.asarray(rng.integers(0, 256, (4, 4, 32, 32, 3), np.uint8)),
        "input_ids": jnp.asarray(rng.integers(5, 60, (4, 8), np.int32)),
        "attention_mask": jnp.ones((4, 8), jnp.int32),
    }
    params = jax.jit(lambda: model.init(jax.random.key(0), **batch)["params"])()

    def run(config: LossConfig):
        def loss(p):
            return stgt_losses(model, p, batch, jax.random.key(1), config, train=False)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    return run


def test_total_is_the_weighted_sum(run_losses) -> None:
    (loss, metrics), _ = run_losses(LossConfig(vtm_weight=0.5, vtg_weight=2.0))
    expected = metrics["loss_contrastive"] + 0.5 * metrics["loss_vtm"] + 2.0 * metrics["loss_vtg"]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert 0 <= metrics["accuracy_vtm"] <= 1


def test_stop_gradient_into_the_csal_targets_changes_gradients_not_losses(run_losses) -> None:
    config = LossConfig(contrastive="csal", vtm_weight=0.0, vtg_weight=0.0)
    (flowing, _), flowing_grads = run_losses(config)
    (stopped, _), stopped_grads = run_losses(dataclasses.replace(config, csal_stop_gradient=True))
    np.testing.assert_allclose(flowing, stopped, rtol=1e-6)
    difference = flowing_grads["text_proj"]["kernel"] - stopped_grads["text_proj"]["kernel"]
    assert jnp.abs(difference).max() > 1e-6
