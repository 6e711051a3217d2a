"""VTC, CSAL and the hard negatives against the formulas on the whole B x B matrix, on one device and on eight."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from stgt_jax.config import LossConfig, MeshConfig
from stgt_jax.contrastive import contrast, similarity
from stgt_jax.losses import csal_loss, vtc_loss
from stgt_jax.mesh import make_mesh

VTC = LossConfig()
CSAL = LossConfig(contrastive="csal")
STOPPED = LossConfig(contrastive="csal", csal_stop_gradient=True)


def unit(*shape: int, seed: int = 0, offset: float = 0.0) -> jax.Array:
    x = np.random.default_rng(seed).normal(size=shape) + offset
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32)


def whole_matrix_loss(video: jax.Array, text: jax.Array, temperature: jax.Array, config: LossConfig) -> jax.Array:
    """The loss by the formulas of `stgt_jax.losses`, from the B x B matrix of all similarities."""
    logits = jnp.einsum("vqe,te->vtq", video, text).max(axis=-1) / temperature
    if config.contrastive == "vtc":
        return vtc_loss(logits, label_smoothing=config.vtc_label_smoothing)
    mean = video.mean(axis=1)
    mean = mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)
    alike = mean @ mean.T, text @ text.T
    alike = jax.lax.stop_gradient(alike) if config.csal_stop_gradient else alike
    return csal_loss(logits, *alike, label_smoothing=config.csal_label_smoothing)


def test_similarity_takes_the_best_query() -> None:
    video, text = unit(3, 4, 8), unit(5, 8, seed=1)
    expected = np.stack([[max(v @ t for v in queries) for t in text] for queries in video])
    np.testing.assert_allclose(similarity(video, text), expected, rtol=1e-5)


def loss_and_gradients(function: Any, *inputs: jax.Array) -> Any:
    return jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2)))(*inputs, jnp.float32(0.07))


@pytest.mark.slow
@pytest.mark.parametrize("config", [VTC, CSAL, STOPPED], ids=["vtc", "csal", "csal_stopped"])
@pytest.mark.parametrize("sizes", [(12, 3, 8), (512, 128, 4)], ids=["one_block", "two_blocks"])
def test_loss_and_gradients_are_those_of_the_whole_matrix(config: LossConfig, sizes: tuple[int, int, int]) -> None:
    batch, queries, width = sizes
    inputs = unit(batch, queries, width, offset=0.3), unit(batch, width, seed=1, offset=0.3)
    loss = loss_and_gradients(lambda *x: contrast(*x, jax.random.key(0), config).loss, *inputs)
    wanted = loss_and_gradients(lambda *x: whole_matrix_loss(*x, config), *inputs)
    chex.assert_trees_all_close(loss, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("config", [VTC, CSAL], ids=["vtc", "csal"])
def test_eight_devices_compute_and_draw_what_one_does(config: LossConfig) -> None:
    inputs = unit(16, 3, 8, offset=0.3), unit(16, 8, seed=1, offset=0.3), jnp.float32(0.07)

    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def function(video: jax.Array, text: jax.Array, temperature: jax.Array) -> Any:
        result = contrast(video, text, temperature, jax.random.key(0), config)
        return result.loss, result

    (_, wanted), wanted_gradients = jax.jit(function)(*inputs)
    for axes in (MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)):
        mesh = make_mesh(axes)
        by_clip = NamedSharding(mesh, P(("data", "fsdp")))
        placed = jax.device_put(inputs[:2], by_clip)
        with jax.set_mesh(mesh):
            (_, result), gradients = jax.jit(function)(*placed, inputs[2])
        chex.assert_trees_all_equal(result[1:], wanted[1:])
        chex.assert_trees_all_close((result.loss, gradients), (wanted.loss, wanted_gradients), rtol=1e-5, atol=1e-6)


def test_similarities_of_every_query_are_never_whole() -> None:
    video, text = jax.ShapeDtypeStruct((4096, 32, 8), jnp.float32), jax.ShapeDtypeStruct((4096, 8), jnp.float32)
    gradients = jax.grad(lambda *x: contrast(*x, jnp.float32(0.07), jax.random.key(0), VTC).loss, argnums=(0, 1))
    memory = jax.jit(gradients).lower(video, text).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * 4096 * 4096 * 32 / 4


def test_hard_negatives_are_never_the_own_pair_and_follow_the_softmax() -> None:
    logits = jnp.array([[9.0, 2.0, 0.0], [0.0, 9.0, -1.0], [1.0, 1.0, 9.0]])
    draw = jax.jit(jax.vmap(lambda key: contrast(logits[:, None], jnp.eye(3), jnp.float32(1), key, VTC)))
    result = draw(jax.random.split(jax.random.key(0), 4000))
    for drawn, rows in ((result.negative_text, logits), (result.negative_video, logits.T)):
        assert not (drawn == jnp.arange(3)).any()
        others = jnp.where(jnp.eye(3, dtype=bool), -jnp.inf, rows)
        shares = jax.nn.one_hot(drawn, 3).mean(axis=0)
        np.testing.assert_allclose(shares, jax.nn.softmax(others), atol=0.03)


def test_accuracy_counts_own_pairs_that_are_best() -> None:
    logits = jnp.array([[3.0, 2.0, 1.0], [4.0, 1.0, 2.0], [0.0, 0.0, 5.0]])
    result = contrast(logits[:, None], jnp.eye(3), jnp.float32(1), jax.random.key(0), VTC)
    np.testing.assert_allclose((result.accuracy_v2t, result.accuracy_t2v), (2 / 3, 1 / 3))
