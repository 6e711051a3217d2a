"""The training loop: one stage, from random or given weights to its last checkpoint.

It waits for the device only to validate, to save, and where a trace begins and ends: the metrics of a step are fetched
while the next one runs. Steps count from 1, so that step n, line n of metrics.jsonl and checkpoint n all speak of the
n-th update.
"""

import contextlib
import logging
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from stgt_jax.config import ModelConfig, TrainConfig
from stgt_jax.distributed import ending_with_its_peers
from stgt_jax.errors import Preempted, STGTError
from stgt_jax.models.stgt import STGT
from stgt_jax.sharding import shard_batch
from stgt_jax.train.checkpoint import Checkpoints, PathLike, save_config
from stgt_jax.train.log import RunLog
from stgt_jax.train.mesh import mesh_for
from stgt_jax.train.performance import StepTimer
from stgt_jax.train.profile import StepTrace
from stgt_jax.train.state import TrainState, abstract_state, init_state, merge_params
from stgt_jax.train.step import Metrics, make_train_step

_log = logging.getLogger(__name__)

Evaluate = Callable[[Any], Mapping[str, float]]


class TrainIterator(Protocol):
    """The training data of this process, without end."""

    def __next__(self) -> Mapping[str, np.ndarray]: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


def train(
    model_config: ModelConfig,
    config: TrainConfig,
    train_iterator: TrainIterator,
    workdir: PathLike,
    *,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    initial_params: Callable[[Mesh], Any] | None = None,
    devices: Sequence[jax.Device] | None = None,
    profile_steps: tuple[int, int] | None = None,
) -> dict[str, float]:
    """Trains one stage.

    Args:
      model_config: of the model.
      config: of the training.
      train_iterator: gives this process' part of each batch: video [B, T, H, W, 3] uint8, input_ids [B, S] int32,
        attention_mask [B, S] int32. Its state (bytes or JSON) is saved with every checkpoint.
      workdir: where checkpoints, metrics.jsonl, performance.jsonl, TensorBoard logs and config.json go; of several
        processes one folder.
      resume: go on from the newest checkpoint in `workdir`; the steps that follow are those of an uninterrupted run,
        also on another mesh or number of processes. After a preemption it does so unasked.
      evaluate: validation, from the whole parameter tree to metrics; the best checkpoint is that of the highest t2v_r1.
      initial_params: makes the parameter tree to start from, laid out on the mesh; by default random parameters.
      devices: to train on; by default all.
      profile_steps: first and last step of which a trace goes to TensorBoard's folder.

    Returns:
      The metrics of the last step and, named "validation/...", of the last validation. Raises STGTError for a workdir
      in use, weights that do not fit the model, data that ends, a loss that is not finite, and steps to trace that the
      run does not have. Raises Preempted when asked to stop, by SIGTERM to any process or a TPU's maintenance event:
      after the running step and the time to write its checkpoint. Of several processes, one that loses another ends:
      see `ending_with_its_peers`.
    """
    trace = StepTrace(workdir, profile_steps, config.num_steps)
    model, workdir = STGT(model_config), epath.Path(workdir)
    mesh = mesh_for(model, config, devices)
    train_step = make_train_step(model, config, mesh)
    checkpoints = Checkpoints(workdir, config.keep_last, config.keep_best)
    with _asked_to_stop() as asked, StepTimer() as timer, contextlib.closing(checkpoints), ending_with_its_peers():
        _check_workdir(workdir, checkpoints, resume)
        state, loader_state = _first_state(model, config, mesh, checkpoints, initial_params)
        if loader_state is not None:
            train_iterator.set_state(loader_state)
        if jax.process_index() == 0:
            save_config(workdir, model=model_config, train=config)
        start = int(state.step)
        trace.warn_if_past(start)
        with RunLog(workdir, start, config, timer, resume=resume or start > 0) as log, trace:
            running = None  # the step on the device, and its metrics to come
            for step in range(start + 1, config.num_steps + 1):
                with trace.step(step):
                    with timer.waiting_for_input():
                        batch = shard_batch(_next_batch(train_iterator, step), mesh)
                    state, metrics = train_step(state, batch)
                    timer.dispatched(metrics)
                if running:
                    _settle(*running, log, checkpoints)
                running = step, metrics
                validates = evaluate is not None and _is_due(step, config.eval_every, config)
                stops = (checkpoints.reached_preemption(step) or asked.is_set()) and step < config.num_steps
                saves = stops or validates or _is_due(step, config.checkpoint_every, config)
                if saves or trace.waits_after(step):
                    _settle(*running, log, checkpoints)
                    running = None
                    with log.pause(step):
                        trace.finished(step)
                        if saves:
                            validation = _validate(evaluate, state, step, log) if evaluate and validates else {}
                            log.flush()
                            _save(step, state, train_iterator.get_state(), validation, checkpoints, stops)
                if stops:
                    raise _preempted(step, checkpoints)
            return log.final


def _check_workdir(workdir: epath.Path, checkpoints: Checkpoints, resume: bool) -> None:
    newest = checkpoints.latest_step
    if newest is not None and not (resume or checkpoints.latest_is_of_preemption):
        raise STGTError(f"{workdir}: has checkpoints (the newest of step {newest}); use --resume or another workdir")
    if jax.process_index() != 0:
        return
    if newest is None and resume:
        tqdm.write(f"{workdir}: no checkpoint to resume from; starting anew", file=sys.stderr)
    if newest is not None and not resume:
        _log.info("%s: was asked to stop after step %d; going on from there", workdir, newest)


def _first_state(
    model: STGT, config: TrainConfig, mesh: Mesh, checkpoints: Checkpoints, initial_params: Callable[[Mesh], Any] | None
) -> tuple[TrainState, Any]:
    """The newest checkpoint's state and place in the data; where there is none, the state of step 0 and None."""
    if checkpoints.latest_step is not None:
        return checkpoints.restore(abstract_state(model, config, mesh), model.config)
    return init_state(model, config, mesh, initial_params(mesh) if initial_params else None), None


def _is_due(step: int, every: int, config: TrainConfig) -> bool:
    return step == config.num_steps or (every > 0 and step % every == 0)


def _next_batch(train_iterator: TrainIterator, step: int) -> Mapping[str, np.ndarray]:
    try:
        return next(train_iterator)
    except StopIteration:
        raise STGTError(f"the training data ended before step {step}; it must repeat without end") from None


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM sets while inside, of a process alone: several have JAX's own handler, which tells all.

    It never comes where Python cannot set a handler, in a thread.
    """
    asked = threading.Event()
    if jax.distributed.is_initialized() or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _settle(step: int, metrics: Metrics, log: RunLog, checkpoints: Checkpoints) -> None:
    """Waits for the metrics of a step, logs them, and stops the run where they are not finite."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    log.step(step, values)
    for name in ("loss", "grad_norm"):
        if not math.isfinite(values[name]):
            raise _diverged(f"{name} is {values[name]} at step {step}", checkpoints)


def _validate(evaluate: Evaluate, state: TrainState, step: int, log: RunLog) -> Mapping[str, float]:
    validation = evaluate(merge_params(state.params, state.frozen))
    log.validation(step, validation)
    return validation


def _save(
    step: int,
    state: TrainState,
    loader_state: Any,
    validation: Mapping[str, float],
    checkpoints: Checkpoints,
    preempted: bool,
) -> None:
    """Saves a checkpoint, but never weights that are not finite."""
    if not _all_finite(state.params):
        raise _diverged(f"the weights are not finite after step {step}", checkpoints)
    checkpoints.save(step, state, loader_state, validation, preempted=preempted)


def _preempted(step: int, checkpoints: Checkpoints) -> Preempted:
    if jax.process_index() == 0:
        _log.info("asked to stop: writing the checkpoint of step %d", step)
    return Preempted(f"stopped as asked, with {checkpoints.path(step)} saved; the same command goes on from there")


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _diverged(what: str, checkpoints: Checkpoints) -> STGTError:
    checkpoints.wait()
    newest = checkpoints.latest_step
    good = "no checkpoint was saved before" if newest is None else f"last good checkpoint: {checkpoints.path(newest)}"
    return STGTError(f"{what}; {good}; lower optimizer.peak_learning_rate, lengthen the warm-up, or look at the data")
