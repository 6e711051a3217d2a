"""The pairs that matching sees, and the sum of the losses."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_for_tests import tiny

from stgt_jax.config import LossConfig
from stgt_jax.models.stgt import STGT, param_shapes
from stgt_jax.train.objective import answer_losses, caption_losses, matching_triples, stgt_losses


def test_triples_are_own_text_another_video_another_text() -> None:
    tokens, ids = jnp.arange(3)[:, None, None], 10 + jnp.arange(3)[:, None]
    triples = matching_triples(tokens, ids, ids + 10, jnp.array([1, 2, 0]), jnp.array([2, 0, 1]))
    assert triples.graph_tokens.ravel().tolist() == [0, 1, 0, 1, 2, 1, 2, 0, 2]
    assert triples.input_ids.ravel().tolist() == [10, 10, 12, 11, 11, 10, 12, 12, 11]
    assert triples.attention_mask.ravel().tolist() == [20, 20, 22, 21, 21, 20, 22, 22, 21]


@pytest.mark.slow
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
        of_all = stgt_losses(model, params, batch, jax.random.key(1), LossConfig(), train=False)
        return *of_all, caption_losses(model, params, batch, jax.random.key(1), LossConfig(), train=False)[0]

    loss, metrics, captioning = run()
    np.testing.assert_allclose(captioning, metrics["loss_vtg"], rtol=1e-6)
    expected = metrics["loss_contrastive"] + metrics["loss_vtm"] + metrics["loss_vtg"]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert 0 <= metrics["accuracy_vtm"] <= 1


@pytest.mark.slow
def test_only_listed_answers_train() -> None:
    config, rng = tiny(), np.random.default_rng(0)
    graph = dataclasses.replace(config.graph, variant="none")  # compiles faster
    model = STGT(dataclasses.replace(config, graph=graph, num_answers=3))
    batch = {
        "video": jnp.asarray(rng.integers(0, 256, (4, 4, 32, 32, 3), np.uint8)),
        "input_ids": jnp.asarray(rng.integers(5, 60, (4, 8), np.int32)),
        "attention_mask": jnp.ones((4, 8), jnp.int32),
    }

    params = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(leaf.dtype), param_shapes(model))

    @jax.jit
    def run(answer: jax.Array) -> Any:
        tokens = model.apply({"params": params}, batch["video"], method="encode_video")["graph_tokens"]
        logits = model.apply({"params": params}, tokens, batch["input_ids"], batch["attention_mask"], method="answer")
        return logits, *answer_losses(model, params, batch | {"answer": answer}, jax.random.key(1), train=False)

    logits, loss, metrics = run(jnp.array([2, -1, 0, -1]))
    log_probabilities = jax.nn.log_softmax(logits)
    np.testing.assert_allclose(loss, -(log_probabilities[0, 2] + log_probabilities[2, 0]) / 2, rtol=1e-6)
    assert metrics["listed"] == 0.5 and metrics["accuracy_answer"] <= 0.5
    assert run(jnp.full(4, -1))[1] == 0.0
