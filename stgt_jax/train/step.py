"""One optimizer step: gradients of the losses on a global batch, in one or several parts, and the update."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stgt_jax.batch import Batch
from stgt_jax.config import TrainConfig
from stgt_jax.errors import STGTError
from stgt_jax.models.stgt import STGT
from stgt_jax.sharding import batch_layout, replicated
from stgt_jax.train.objective import losses
from stgt_jax.train.optimizer import make_optimizer, make_schedule
from stgt_jax.train.state import TrainState, abstract_state, merge_params

Metrics = dict[str, jax.Array]


def make_train_step(
    model: STGT, config: TrainConfig, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns the jitted function (state, batch) -> (state, metrics).

    The batch is a global one, as `shard_batch` returns it. The state is consumed: its memory is reused. The metrics are
    float32 scalars: those of `losses`, the learning rate, and the norm of the gradient before clipping. With
    `on_nonfinite="skip"` also "skipped", 1 where the loss or that norm is not finite: such a step changes nothing but
    the number of steps.

    Raises:
      STGTError: B or T does not divide by the devices that split it.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % (config.accumulation_steps * ways):
        raise STGTError(
            f"train.batch_size={config.batch_size} does not divide by train.accumulation_steps="
            f"{config.accumulation_steps} x {ways} devices of the mesh axes data and fsdp"
        )
    frames, parts = model.config.num_frames, mesh.shape["sequence"]
    if frames % parts:
        raise STGTError(f"num_frames={frames} does not divide by the {parts} devices of the mesh axis sequence")
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    schedule = make_schedule(config.optimizer, config.num_steps)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for operations that split their own work
            gradients, metrics = _mean_gradients(model, config, mesh, state, batch, rng)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {"learning_rate": schedule(state.step), "grad_norm": optax.tree.norm(gradients)}
        if config.on_nonfinite == "skip":
            fine = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
            new, old = (params, opt_state), (state.params, state.opt_state)
            params, opt_state = jax.tree.map(functools.partial(jnp.where, fine), new, old)
            metrics["skipped"] = 1.0 - fine
        return TrainState(state.step + 1, params, state.frozen, opt_state), metrics

    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, config, mesh))
    return jax.jit(
        train_step,
        in_shardings=(layout, batch_layout(mesh, answers=config.loss.objective == "answering")),
        out_shardings=(layout, replicated(mesh)),
        donate_argnums=0,
    )


def _mean_gradients(
    model: STGT, config: TrainConfig, mesh: Mesh, state: TrainState, batch: Batch, rng: jax.Array
) -> tuple[Any, Metrics]:
    """Gradients and metrics of the batch, or their means over microbatches that are computed one after the other."""

    def loss_fn(params: Any, microbatch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        params = merge_params(params, state.frozen)
        return losses(model, params, microbatch, key, config.loss)

    def gradients_of(microbatch: Batch, key: jax.Array) -> tuple[Any, Metrics]:
        gradients, metrics = jax.grad(loss_fn, has_aux=True)(state.params, microbatch, key)
        return gradients, metrics

    steps = config.accumulation_steps
    if steps == 1:
        return gradients_of(batch, rng)

    def accumulate(total: Any, xs: tuple[jax.Array, Batch]) -> tuple[Any, Metrics]:
        index, microbatch = xs
        gradients, metrics = gradients_of(microbatch, jax.random.fold_in(rng, index))
        return jax.tree.map(jnp.add, total, gradients), metrics

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    layout = batch_layout(mesh, answers="answer" in batch)
    microbatches = jax.tree.map(functools.partial(_microbatches, steps), batch, layout)
    total, metrics = jax.lax.scan(accumulate, zeros, (jnp.arange(steps), microbatches))
    return jax.tree.map(lambda g: g / steps, total), jax.tree.map(jnp.mean, metrics)


def _microbatches(steps: int, array: jax.Array, layout: NamedSharding) -> jax.Array:
    """[B, ...] -> [steps, B / steps, ...]. Microbatch i has rows i, i + steps, ...: no row changes its device."""
    array = array.reshape(-1, steps, *array.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(array, NamedSharding(layout.mesh, P(None, *layout.spec)))
