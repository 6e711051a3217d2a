"""The formulas of the losses on cases worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from stgt_jax.losses import csal_loss, vtc_loss, vtg_loss, vtm_loss


def test_vtc_of_uninformative_logits_is_the_log_of_the_batch() -> None:
    np.testing.assert_allclose(vtc_loss(jnp.zeros((6, 6)), label_smoothing=0.1), np.log(6), rtol=1e-6)


def test_vtc_wants_the_diagonal_and_smoothing_a_share_of_all() -> None:
    logits = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    rows, columns = jax.nn.log_softmax(logits, axis=1), jax.nn.log_softmax(logits, axis=0)
    own = [-(x[0, 0] + x[1, 1]) / 2 for x in (rows, columns)]
    np.testing.assert_allclose(vtc_loss(logits, label_smoothing=0.0), np.mean(own), rtol=1e-6)
    smoothed = [0.8 * x - 0.2 * y.mean() for x, y in zip(own, (rows, columns), strict=True)]
    np.testing.assert_allclose(vtc_loss(logits, label_smoothing=0.2), np.mean(smoothed), rtol=1e-6)


def test_csal_shares_the_target_between_clips_alike_in_both_modalities() -> None:
    logits = 100 * jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    alike = logits / 100
    loss = csal_loss(logits, alike, alike, label_smoothing=0.0)
    np.testing.assert_allclose(loss, 2 / 3 * np.log(2), rtol=1e-5)  # the entropy of (1/2, 1/2), (1/2, 1/2) and (1,)
    other_texts = csal_loss(logits, alike, jnp.eye(3), label_smoothing=0.0)
    np.testing.assert_allclose(other_texts, vtc_loss(logits, label_smoothing=0.0), rtol=1e-5)


def test_vtm_is_the_cross_entropy_of_match_or_not() -> None:
    logits, labels = jnp.array([[-9.0, 9.0], [9.0, -9.0]]), jnp.array([1, 0])
    assert vtm_loss(logits, labels) < 1e-6
    assert vtm_loss(-logits, labels) > 15


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
