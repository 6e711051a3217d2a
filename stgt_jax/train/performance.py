"""Where the time of a run goes: seconds a step, the share of them that waits for data, goodput; and device memory.

A step lasts from the completion of the one before, or from the end of a pause in which the loop validates or saves, to
its own. Its input wait is the part in which the devices have nothing to do for want of its batch: from the completion
of the step before until `shard_batch` has returned. Waiting behind a running step costs nothing and is not counted: a
loader one tenth too slow shows as a tenth, though the loop, which is ahead, does little else than wait for it.
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
    """Some steps, one after the other."""

    steps: int = 0
    seconds: float = 0.0  # of these steps, their input wait included
    input_seconds: float = 0.0  # of these seconds, those of input wait


class StepTimer:
    """Times the steps of one start of a run; a context manager, entered when the run starts.

    The loop runs ahead of the devices and shall not wait for them, so a thread notes when each step is completed. The
    first step after the start belongs to no window: the compilation is in it.
    """

    def __init__(self) -> None:
        self.started = time.time()  # to place this start among others; durations are those of the monotonic clock
        self._began = time.monotonic()
        self._input = (self._began, self._began)  # when the loop asked for the newest batch, and when it had it
        self._dispatched: collections.deque[tuple[float, float, Future[float]]] = collections.deque()
        self._done_at: float | None = None  # completion of the last step finished, or the end of a pause after it
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
        """Around the line that gets the batch of the next step and puts it on the devices: "input" in a trace."""
        asked = time.monotonic()
        with jax.profiler.TraceAnnotation("input"):
            yield
        self._input = asked, time.monotonic()

    def dispatched(self, metrics: Any) -> None:
        """A step runs on the devices; it is completed when `metrics`, a tree of its arrays, is there."""
        self._dispatched.append((*self._input, self._thread.submit(_completion, metrics)))

    def finished(self) -> None:
        """Counts the oldest step dispatched, whose metrics have come, to the window."""
        asked, got, completion = self._dispatched.popleft()
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
        """Around what is no training, when every step dispatched is finished."""
        yield
        self._done_at = time.monotonic()

    def take_window(self) -> Window:
        """Returns the steps finished since this was last called."""
        window, self._window = self._window, Window()
        return window


def _completion(metrics: Any) -> float:
    jax.block_until_ready(metrics)
    return time.monotonic()


class Goodput:
    """The share of a run's time that went into training steps which are part of its history.

    The numerator, `productive_seconds`: all steps, without their input wait and without the first step after each
    start. The denominator, `elapsed_seconds`: wall-clock time since the run's first start that got as far as its log.
    So what lowers it is: start-up with restoring and compilation, input wait, validation and checkpoints as long as
    they hold the loop up, steps that a crash undid so that they had to be run again, and the time between a crash, or
    whatever else ended a process, and the next start.

    A line tells of the time until it is written, so the last one not of the validation and checkpoint after the last
    step. A run that goes on from a checkpoint takes both from the lines it has written, of which those after the
    checkpoint are gone: the steps that they tell of have to be run again.
    """

    def __init__(self, lines: Sequence[Mapping[str, float]], timer: StepTimer) -> None:
        """Continues the account in `lines`: those of `line`, up to the checkpoint; none for a new run."""
        self._timer = timer
        self._productive, self._earlier = 0.0, 0.0
        if lines:
            first, last = lines[0], lines[-1]
            self._productive = last["productive_seconds"]
            # The wall clocks of two machines may differ, but no start was before what an earlier one has seen.
            self._earlier = max(timer.started - (first["time"] - first["elapsed_seconds"]), last["elapsed_seconds"])

    def add(self, window: Window) -> None:
        """Counts the steps of `window` as part of the history."""
        self._productive += window.seconds - window.input_seconds

    def line(self) -> dict[str, float]:
        """The account now: "time" in seconds since 1970, and what the class tells of."""
        elapsed = self._earlier + self._timer.elapsed_seconds()
        return {
            "time": time.time(),
            "elapsed_seconds": elapsed,
            "productive_seconds": self._productive,
            "goodput": self._productive / elapsed,
        }


def step_figures(window: Window, batch_size: int) -> dict[str, float]:
    """What the steps of a window, at least one, took: means over them; GB are 10^9 bytes, and none where none is told.

    `device_memory_gb` is the highest that any device of this process has held since the process started.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [figures["peak_bytes_in_use"] for figures in stats if "peak_bytes_in_use" in figures]
    return {
        "step_seconds": window.seconds / window.steps,
        "input_wait_share": window.input_seconds / window.seconds,
        "videos_per_second": batch_size * window.steps / window.seconds,
        **({"device_memory_gb": max(peaks) / 1e9} if peaks else {}),
    }
