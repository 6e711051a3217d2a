"""Lets runs in one process with equal models and training options share what is traced and compiled for them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from stgt_jax.train import loop


def share_train_step() -> None:
    """`train` takes its train step and its first state from a cache from now on.

    To trace and load them at each call takes far longer than a few steps of a small model.
    """
    init_state = loop.init_state
    first_state = functools.cache(init_state)

    def copied_state(model: Any, config: Any, mesh: jax.sharding.Mesh, params: Any = None) -> Any:
        if params is not None:
            return init_state(model, config, mesh, params)
        return jax.tree.map(jnp.copy, first_state(model, config, mesh))  # the train step consumes the state it is given

    compiled: dict[Any, Any] = {}

    def step_from_cache(model: Any, config: Any, mesh: Any, batches: Any) -> Any:
        key = (model, config, mesh, str(batches.shapes))
        if key not in compiled:
            compiled[key] = fitting_train_step(model, config, mesh, batches)
        return compiled[key]

    fitting_train_step = loop.fitting_train_step
    loop.fitting_train_step = step_from_cache
    loop.init_state = copied_state
