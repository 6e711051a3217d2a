"""What happens around the steps of a run: the supervisor logs and traces them, validates, saves and stops.

It waits for the devices only to validate, to save, and where a trace begins or ends: the metrics of a step are fetched
while the next step runs.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from stgt_jax.config import TrainConfig
from stgt_jax.errors import STGTError
from stgt_jax.train.checkpoint import Checkpoints
from stgt_jax.train.log import RunLog
from stgt_jax.train.loss_watch import LossWatch, Origin
from stgt_jax.train.out_of_memory import OF_STEP, OF_VALIDATION, out_of_memory_named
from stgt_jax.train.performance import StepTimer
from stgt_jax.train.profile import StepTrace
from stgt_jax.train.state import TrainState, merge_params
from stgt_jax.train.step import Metrics
from stgt_jax.train.stop_requests import StopRequests

Evaluate = Callable[[Any], Mapping[str, float]]

_log = logging.getLogger(__name__)


class Supervisor:
    """Looks after the steps of one start of a run; `steps` are those left to do."""

    def __init__(
        self,
        config: TrainConfig,
        checkpoints: Checkpoints,
        log: RunLog,
        timer: StepTimer,
        trace: StepTrace,
        watch: LossWatch,
        *,
        start: int,
        data_state: Callable[[], Any],
        evaluate: Evaluate | None,
        requests: StopRequests,
    ) -> None:
        """Looks after the steps that follow step `start`.

        Args:
          config: of the training.
          checkpoints: gets the states.
          log: gets the metrics.
          timer: of this start of the run.
          trace: of the steps to trace, if any.
          watch: looks at the loss of every step.
          start: the last step done.
          data_state: returns the position in the training data, to be saved with the state.
          evaluate: from all parameters to the metrics of a validation; None validates nothing.
          requests: to stop after the running step.
        """
        trace.warn_if_past(start)
        self.steps = range(start + 1, config.num_steps + 1)
        self._config, self._checkpoints, self._log, self._timer, self._trace = config, checkpoints, log, timer, trace
        self._watch = watch
        self._data_state, self._evaluate, self._requests = data_state, evaluate, requests
        # The step on the devices, its metrics to come, and what its batch was made of.
        self._running: tuple[int, Metrics, Origin] | None = None

    def step(self, step: int) -> contextlib.AbstractContextManager[None]:
        """Surrounds the lines that get the batch of `step` and start its computation."""
        return self._trace.step(step)

    def waiting_for_input(self) -> contextlib.AbstractContextManager[None]:
        """Surrounds the line that gets the batch of a step and puts it on the devices."""
        return self._timer.waiting_for_input()

    def after_step(self, step: int, state: TrainState, metrics: Metrics, origin: Origin) -> None:
        """Logs the step before; after `step`, validates, saves and stops where that is due.

        Raises:
          STGTError: a loss, a gradient or a weight is not finite.
          StorageError: a checkpoint cannot be written.
          Preempted, KeyboardInterrupt: the run was asked to stop, and has saved a checkpoint.
        """
        self._timer.step_started(metrics)
        self._checkpoints.check()
        self._log_running_step()
        self._running = step, metrics, origin
        validates = self._evaluate is not None and self._is_due(step, self._config.eval_every)
        # Every process must ask after every step: they agree on the step to stop after.
        asked = self._checkpoints.reached_preemption(step) or self._requests.requested
        stops = asked and step < self._config.num_steps
        saves = stops or validates or self._is_due(step, self._config.checkpoint_every)
        if saves or self._trace.begins_or_ends_after(step):
            self._log_running_step()
            with self._log.pause(step):
                self._trace.stop_after(step)
                if saves:
                    validation = self._validate(self._evaluate, step, state) if self._evaluate and validates else {}
                    self._save(step, state, validation, preempted=stops)
        if stops:
            self._stop(step)

    def _is_due(self, step: int, every: int) -> bool:
        return step == self._config.num_steps or (every > 0 and step % every == 0)

    def _log_running_step(self) -> None:
        """Waits for the metrics of the step on the devices, logs them, and ends the run where the loss is broken."""
        if self._running is None:
            return
        (step, metrics, origin), self._running = self._running, None
        with out_of_memory_named("a training step", OF_STEP):  # started before, it fails where its result is fetched
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._log.step(step, values)
        if broken := self._watch.check(step, values, origin):
            raise self._diverged(broken)

    def _validate(self, evaluate: Evaluate, step: int, state: TrainState) -> Mapping[str, float]:
        with out_of_memory_named("validation", OF_VALIDATION):
            validation = evaluate(merge_params(state.params, state.frozen))
        self._log.validation(step, validation)
        return validation

    def _save(self, step: int, state: TrainState, validation: Mapping[str, float], *, preempted: bool) -> None:
        """Saves a checkpoint, but never weights that are not finite."""
        self._log.flush()
        if not _all_finite(state.params):
            raise self._diverged(f"the weights are not finite after step {step}")
        self._checkpoints.save(step, state, self._data_state(), validation, preempted=preempted)

    def _stop(self, step: int) -> None:
        if jax.process_index() == 0 and not self._requests.interrupted:
            _log.info("asked to stop: writing the checkpoint of step %d", step)
        self._checkpoints.wait()
        self._requests.stop(
            f"stopped as asked, with {self._checkpoints.path(step)} saved; the same command continues from there"
        )

    def _diverged(self, what: str) -> STGTError:
        self._checkpoints.wait()
        newest = self._checkpoints.latest_step
        good = f"last good checkpoint: {self._checkpoints.path(newest)}" if newest else "no checkpoint was saved before"
        mend = (
            "lower optimizer.peak_learning_rate, lengthen the warm-up, look at the data, or give"
            " --train.on_nonfinite skip"
        )
        return STGTError(f"{what}; {good}; {mend}")


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
