"""A trace of chosen training steps: what host and devices did when, for TensorBoard's profiler or XProf."""

import contextlib
import sys
from collections.abc import Iterator

import jax
from etils import epath
from tqdm import tqdm

from stgt_jax.errors import STGTError


class StepTrace:
    """Traces the steps from `first` to `last` and no others; a context manager, which also ends a trace cut short.

    The devices run behind the loop. So the loop must wait for the step before the first one, or part of that step
    would be in the trace, and for the last one, or part of it would not: `begins_or_ends_after` names these two. Only
    process 0 traces: all processes run the same program, and those on one machine would write to the same file.
    """

    def __init__(self, workdir: epath.Path, steps: tuple[int, int] | None, num_steps: int) -> None:
        """Traces `steps` (first, last) into WORKDIR/tensorboard/plugins/profile; with None nothing.

        Raises STGTError for steps that a run of `num_steps` steps does not have.
        """
        self._folder = epath.Path(workdir) / "tensorboard"
        self._traces, self._running = jax.process_index() == 0, False
        self._first, self._last = steps or (0, 0)  # steps count from 1
        if steps and not 1 <= self._first <= self._last <= num_steps:
            raise STGTError(
                f"--profile-steps {self._first}:{self._last} is not within this run's steps, 1:{num_steps}; give the"
                " first and the last step to trace, such as 10:15"
            )

    def warn_if_past(self, step: int) -> None:
        """Warns where a run that resumes after `step` has no step left to trace.

        This is no error, so that a job can be started again by the command of its first start.
        """
        if self._traces and 0 < self._last <= step:
            steps = f"--profile-steps {self._first}:{self._last}"
            tqdm.write(f"{steps}: no trace, as the run continues after step {step}", file=sys.stderr)

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Goes around the lines that get the batch of `step` and start its computation; begins the trace if due."""
        if self._traces and not self._running and self._first <= step <= self._last:
            jax.profiler.start_trace(str(self._folder), profiler_options=_without_python_calls())
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def begins_or_ends_after(self, step: int) -> bool:
        """Whether the loop must wait for the devices to complete `step` before it starts the next one."""
        return step in (self._first - 1, self._last)

    def stop_after(self, step: int) -> None:
        """Writes the trace if `step`, which the devices have completed, is its last."""
        if step == self._last:
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


def _without_python_calls() -> jax.profiler.ProfileOptions:
    # To trace Python calls, jaxlib sets the profile function of every thread. On Python 3.11 this is a segmentation
    # fault if a thread ends at that moment, as the threads that write a checkpoint do. It would also slow the steps.
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return options
