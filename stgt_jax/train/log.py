"""The logs of a run: a progress bar, TensorBoard, and two files with a JSON object on each line.

    WORKDIR/metrics.jsonl       the metrics of every step and validation, the same however often a run is interrupted
           /performance.jsonl   seconds per step and goodput, at every start, every `log_every` steps and every pause

When a run is resumed from a checkpoint, both lose the lines of the steps after it.
"""

import contextlib
from collections.abc import Iterator, Mapping
from types import TracebackType

import jax
from etils import epath
from tqdm import tqdm

from stgt_jax.config import TrainConfig
from stgt_jax.errors import StorageError
from stgt_jax.train.json_lines import JsonLines, lines_until
from stgt_jax.train.performance import Goodput, StepTimer, step_figures
from stgt_jax.train.plots import Plots

_IN_BAR = {
    "loss": "loss", "accuracy_v2t": "v2t", "accuracy_t2v": "t2v", "accuracy_vtm": "vtm", "accuracy_answer": "answers",
    "learning_rate": "lr",
}  # fmt: skip


class RunLog:
    """The logs of one run, written by process 0 alone; a context manager.

    `final` holds the newest value of every metric; those of a validation are named "validation/...".
    """

    def __init__(
        self, workdir: epath.Path, start: int, config: TrainConfig, timer: StepTimer, *, resume: bool = False
    ) -> None:
        """Continues the logs after step `start`; `timer` is that of this start of the run.

        Without `resume` the goodput is that of a new run, even if one that saved no checkpoint has left logs there.
        """
        self.final: dict[str, float] = {}
        self._config, self._timer = config, timer
        self._in_bar: dict[str, str] = {}
        self._writes = jax.process_index() == 0
        metrics, performance = workdir / "metrics.jsonl", workdir / "performance.jsonl"
        kept, earlier = lines_until(metrics, start), lines_until(performance, start) if resume else []
        for line in kept:
            self.final |= {name: value for name, value in line.items() if name != "step"}
        self._goodput = Goodput(earlier, timer)
        self._bar = tqdm(total=config.num_steps, initial=start, unit="step", disable=not self._writes)
        if self._writes:
            self._metrics, self._performance = JsonLines(metrics, kept), JsonLines(performance, earlier)
            self._plots = Plots(workdir / "tensorboard", start)
            self._performance.append(start, self._goodput.line())

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        # Storage that failed would be waited for once more, and what the next start keeps is written already.
        if self._writes and not isinstance(error, StorageError):
            self._metrics.close()
            self._performance.close()
            self._plots.close()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Logs a training step; every `log_every` steps also in TensorBoard, on the bar, and its performance."""
        self._write(step, values)
        self._bar.update()
        self._timer.step_completed()
        if step % self._config.log_every == 0 or step == self._config.num_steps:
            self._log_performance(step)
            figures = {short: f"{values[name]:.3g}" for name, short in _IN_BAR.items() if name in values}
            self._bar.set_postfix(figures | self._in_bar)
            self._plot(step, values)

    @contextlib.contextmanager
    def pause(self, step: int) -> Iterator[None]:
        """Goes around work that is no training, between `step`, which is logged, and the next one.

        The performance is logged first: a run that is resumed from a checkpoint of `step` continues from that line.
        """
        self._log_performance(step)
        with self._timer.pause():
            yield

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """Logs a validation of the weights after `step`."""
        values = {f"validation/{name}": float(value) for name, value in values.items()}
        self._write(step, values)
        self._plot(step, values)

    def _log_performance(self, step: int) -> None:
        """Logs the performance of the steps since the last call, if there are any."""
        window = self._timer.take_window()
        if not window.steps:
            return
        self._goodput.add(window)
        figures, goodput = step_figures(window, self._config.batch_size), self._goodput.line()
        self._in_bar = {
            "videos/s": f"{figures['videos_per_second']:.1f}",
            "s/step": f"{figures['step_seconds']:.3g}",
            "input wait": f"{figures['input_wait_share']:.0%}",
        }
        if self._writes:
            self._performance.append(step, goodput | figures)
        shown = figures | {"goodput": goodput["goodput"]}
        self._plot(step, {f"performance/{name}": value for name, value in shown.items()})

    def flush(self) -> None:
        """Writes out all files up to here."""
        if self._writes:
            self._metrics.flush()
            self._performance.flush()
            self._plots.flush()

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        self.final |= values
        if self._writes:
            self._metrics.append(step, values)

    def _plot(self, step: int, values: Mapping[str, float]) -> None:
        if self._writes:
            self._plots.add(step, {name if "/" in name else f"train/{name}": value for name, value in values.items()})
