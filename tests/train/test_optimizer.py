"""Learning rate and weight decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_for_tests import tiny
from small import leaves_by_name

from stgt_jax.config import OptimizerConfig
from stgt_jax.models.stgt import STGT, param_shapes
from stgt_jax.train.optimizer import decay_mask, make_optimizer, make_schedule

CONFIG = OptimizerConfig(
    peak_learning_rate=1e-3, end_learning_rate=1e-5, warmup_start_learning_rate=1e-6, warmup_steps=10
)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 1e-6), (5, (1e-6 + 1e-3) / 2), (10, 1e-3), (60, (1e-3 + 1e-5) / 2), (110, 1e-5), (500, 1e-5)],
)
def test_warmup_is_linear_then_cosine_to_the_end(step: int, rate: float) -> None:
    np.testing.assert_allclose(make_schedule(CONFIG, 110)(step), rate, rtol=1e-5)


def test_no_warmup_starts_at_the_peak() -> None:
    np.testing.assert_allclose(make_schedule(OptimizerConfig(warmup_steps=0), 10)(0), 1e-4, rtol=1e-6)


def test_biases_norms_and_temperature_do_not_decay() -> None:
    params = param_shapes(STGT(tiny()))
    mask = {name: bool(decays) for name, decays in leaves_by_name(decay_mask(params)).items()}
    exempt = {name for name, decays in mask.items() if not decays}
    assert exempt == {n for n in mask if n.rsplit("/")[-1] in ("bias", "scale", "lm_bias", "temperature")}
    assert mask["vision/blocks/mlp/up/kernel"] and mask["vision/pos_embed"] and mask["qformer/query_tokens"]


def test_decay_shrinks_kernels_only() -> None:
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((3, 2))}
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=0, weight_decay=0.5, peak_learning_rate=0.1), 10)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_clipping_bounds_the_gradient_and_zero_turns_it_off() -> None:
    params = {"kernel": jnp.zeros(4)}
    gradients = {"kernel": jnp.full(4, 50.0)}  # norm 100
    for clip_norm, norm in ((1.0, 1.0), (0.0, 100.0)):
        optimizer = make_optimizer(OptimizerConfig(clip_norm=clip_norm, beta1=0.0), 10_000)
        _, state = optimizer.update(gradients, optimizer.init(params), params)
        (mu,) = [leaf for name, leaf in leaves_by_name(state).items() if name.endswith("mu/kernel")]
        np.testing.assert_allclose(np.linalg.norm(mu), norm, rtol=1e-5)
