"""Float32 is multiplied as float32 on every device: each matrix product of a train step says so.

A CPU's results do not show it. On an H200 the goldens' outputs were missed by a thousand times the tolerance.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params
from models_for_tests import tiny

from stgt_jax.config import LossConfig
from stgt_jax.models.stgt import STGT, param_shapes
from stgt_jax.train.objective import stgt_losses


def products(jaxpr: Any) -> Iterator[Any]:
    """All matrix products of a program, also in the programs that it calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


@pytest.mark.parametrize("contrastive", ["vtc", "csal"])
def test_float32_is_multiplied_in_full_precision(contrastive):
    model = STGT(tiny())
    batch = {
        "video": jnp.zeros((4, 4, 32, 32, 3), jnp.uint8),
        "input_ids": jnp.ones((4, 8), jnp.int32),
        "attention_mask": jnp.ones((4, 8), jnp.int32),
    }

    def loss(params):
        return stgt_losses(model, params, batch, jax.random.key(0), LossConfig(contrastive=contrastive), train=True)[0]

    found = list(products(jax.make_jaxpr(jax.grad(loss))(param_shapes(model)).jaxpr))
    assert len(found) > 100
    default = [x for x in found if not x.params["precision"] or jax.lax.Precision.DEFAULT in x.params["precision"]]
    assert not default, default[0]
