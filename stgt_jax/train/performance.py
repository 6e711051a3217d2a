"""Where the time of a run goes: seconds per step, the share spent waiting for data, goodput, and device memory.

A step lasts from the completion of the step before it, or from the end of a pause in which the loop validates or saves,
to its own completion. Its input wait is the part in which the devices are idle because its batch is not there yet: from
the completion of the step before until `shard_batch` returns. Time in which the loop waits for a batch while the
devices still compute is not counted. So a loader that is a tenth too slow shows as a tenth.
"""

import collections
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class Window:
    """Consecutive steps."""

    steps: int = 0
    seconds: float = 0.0  # of these steps, their input wait included
    input_seconds: float = 0.0  # of these seconds, those of input wait


class StepTimer:
    """Times the steps of one start of a run; a context manager, entered when the run starts.

    The loop runs ahead of the devices and must not wait for them, so a thread notes when each step is completed. The
    first step after the start counts to no window, as it includes the compilation.
    """

    def __init__(self) -> None:
        self.started = time.time()  # to place this start among others; durations are those of the monotonic clock
        self._began = time.monotonic()
        self._input = (self._began, self._began)  # when the loop asked for the newest batch, and when it had it
        # Of each step on the devices: when its batch was asked for, when it was there, and when it will be completed.
        self._steps: collections.deque[tuple[float, float, Future[float]]] = collections.deque()
        self._done_at: float | None = None  # completion of the last step counted, or the end of a pause after it
        self._window = Window()
        self._thread = ThreadPoolExecutor(1, "step-timer")

    def __enter__(self) -> "StepTimer":
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(wait=False)

    def elapsed_seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    @contextlib.contextmanager
    def waiting_for_input(self) -> Iterator[None]:
        """Goes around the line that gets the next batch and puts it on the devices; named "input" in a trace."""
        asked = time.monotonic()
        with jax.profiler.TraceAnnotation("input"):
            yield
        self._input = asked, time.monotonic()

    def step_started(self, metrics: Any) -> None:
        """Notes that the devices have got a step to compute; it is complete when the arrays in `metrics` are there."""
        self._steps.append((*self._input, self._thread.submit(_completion, metrics)))

    def step_completed(self) -> None:
        """Counts the oldest step that was started, whose metrics are there, to the window."""
        asked, got, completion = self._steps.popleft()
        before, self._done_at = self._done_at, completion.result()
        if before is not None:
            waited = max(0.0, got - max(asked, before))
            self._window = Window(
                self._window.steps + 1,
                self._window.seconds + self._done_at - before,
                self._window.input_seconds + waited,
            )

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Goes around work that is no training, done when no step is on the devices."""
        yield
        self._done_at = time.monotonic()

    def take_window(self) -> Window:
        """Returns the steps completed since this was last called."""
        window, self._window = self._window, Window()
        return window


def _completion(metrics: Any) -> float:
    jax.block_until_ready(metrics)
    return time.monotonic()


class Goodput:
    """The share of a run's time that went into training steps whose result was kept.

    It is `productive_seconds` over `elapsed_seconds`. The first are the seconds of all steps, without their input wait
    and without the first step after each start. The second are those of the clock since the run's first start. So these
    lower it: start-up with restoring and compilation, input wait, validation and checkpoints as long as the loop waits
    for them, steps that had to be repeated after a crash, and the time between the end of a process and the next start.

    A line covers the time until it is written: the last one does not cover the validation and the checkpoint after the
    last step. A run that is resumed continues from its lines up to the checkpoint; those after it are dropped, as their
    steps are repeated.
    """

    def __init__(self, lines: Sequence[Mapping[str, float]], timer: StepTimer) -> None:
        """Continues from `lines`, which `line` gave up to the checkpoint; none for a new run."""
        self._timer = timer
        self._productive, self._earlier = 0.0, 0.0
        if lines:
            first, last = lines[0], lines[-1]
            self._productive = last["productive_seconds"]
            # The clocks of two machines may differ, but this start is not before the last line.
            self._earlier = max(timer.started - (first["time"] - first["elapsed_seconds"]), last["elapsed_seconds"])

    def add(self, window: Window) -> None:
        """Counts the steps of `window`."""
        self._productive += window.seconds - window.input_seconds

    def line(self) -> dict[str, float]:
        """The figures of this moment: "time" in seconds since 1970, and those of the class."""
        elapsed = self._earlier + self._timer.elapsed_seconds()
        return {
            "time": time.time(),
            "elapsed_seconds": elapsed,
            "productive_seconds": self._productive,
            "goodput": self._productive / elapsed,
        }


def step_figures(window: Window, batch_size: int) -> dict[str, float]:
    """Means over the steps of a window, of which there is at least one.

    `device_memory_gb` (10^9 bytes) is the most that a device of this process has held since the process started; it is
    left out where the devices do not tell.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [figures["peak_bytes_in_use"] for figures in stats if "peak_bytes_in_use" in figures]
    return {
        "step_seconds": window.seconds / window.steps,
        "input_wait_share": window.input_seconds / window.seconds,
        "videos_per_second": batch_size * window.steps / window.seconds,
        **({"device_memory_gb": max(peaks) / 1e9} if peaks else {}),
    }
