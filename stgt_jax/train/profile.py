"""A trace of some training steps: what the host and the devices did when, for TensorBoard's profiler or XProf."""

import contextlib
import sys
from collections.abc import Iterator

import jax
from etils import epath
from tqdm import tqdm

from stgt_jax.errors import STGTError


class StepTrace:
    """Traces the steps from `first` to `last`, neither less nor more; a context manager, which ends a trace cut off.

    Dispatch is asynchronous. So the loop waits for the step before the first one, else its end would be in the trace,
    and for the last one, else its end would not; `waits_after` names the two. Process 0 alone traces: all run the same
    program, and those that share a machine would write the same file.
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
        """Says so where no step is left to trace, in a run that goes on after `step`.

        No error: a job that is started again with the words of its first start shall go on.
        """
        if self._traces and 0 < self._last <= step:
            steps = f"--profile-steps {self._first}:{self._last}"
            tqdm.write(f"{steps}: no trace, as the run goes on after step {step}", file=sys.stderr)

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around the lines that get a step's batch and start it; where the trace is to begin, it begins here."""
        if self._traces and not self._running and self._first <= step <= self._last:
            jax.profiler.start_trace(str(self._folder), profiler_options=_without_python_calls())
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def waits_after(self, step: int) -> bool:
        """Whether the loop has to finish `step` before it goes on."""
        return step in (self._first - 1, self._last)

    def finished(self, step: int) -> None:
        """Writes the trace if `step`, which the devices have completed, was the last of it."""
        if step == self._last:
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


def _without_python_calls() -> jax.profiler.ProfileOptions:
    # To trace those, jaxlib sets the profile function of all threads, and on Python 3.11 that of one which ends at this
    # moment, as those that write a checkpoint do, is a segmentation fault. They would slow the steps besides.
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return options
