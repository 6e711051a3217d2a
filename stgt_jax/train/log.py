"""What a run tells of itself: a progress bar, TensorBoard, and every step's metrics in WORKDIR/metrics.jsonl."""

import io
import json
import os
import time
from collections.abc import Mapping
from types import TracebackType

import jax
import tensorboardX
from etils import epath
from tqdm import tqdm

from stgt_jax.config import TrainConfig

_IN_BAR = {"loss": "loss", "accuracy_v2t": "v2t", "accuracy_t2v": "t2v", "accuracy_vtm": "vtm", "learning_rate": "lr"}


class RunLog:
    """Logs of one run, written by process 0 alone; a context manager.

    `final` holds the newest value of every metric, those of a validation as "validation/...".
    """

    def __init__(self, workdir: epath.Path, start: int, config: TrainConfig) -> None:
        """Continues the logs after step `start`; lines of later steps, of a run cut off after a checkpoint, go."""
        self.final: dict[str, float] = {}
        self._config = config
        self._clock: tuple[int, float] | None = None  # (step, time) from which the speed is counted
        self._writes = jax.process_index() == 0
        kept = _lines_until(workdir / "metrics.jsonl", start)
        for line in kept:
            self.final |= {name: value for name, value in line.items() if name != "step"}
        self._bar = tqdm(total=config.num_steps, initial=start, unit="step", disable=not self._writes)
        if self._writes:
            self._file = _MetricsFile(workdir / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
            self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        if self._writes:
            self._file.close()
            self._board.close()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Logs a training step; TensorBoard and the bar's figures follow every `log_every` steps."""
        self._write(step, values)
        self._bar.update()
        now = time.perf_counter()
        if self._clock is None:  # after the first step, which has the compilation in it
            self._clock = step, now
        elif step % self._config.log_every == 0 or step == self._config.num_steps:
            speed = (step - self._clock[0]) * self._config.batch_size / (now - self._clock[1])
            self._clock = step, now
            figures = {short: f"{values[name]:.3g}" for name, short in _IN_BAR.items() if name in values}
            self._bar.set_postfix(figures | {"videos/s": f"{speed:.1f}"})
            self._plot(step, {**values, "videos_per_second": speed})

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """Logs a validation of the weights after `step`; its time does not count as training."""
        values = {f"validation/{name}": float(value) for name, value in values.items()}
        self._write(step, values)
        self._plot(step, values)
        self._clock = step, time.perf_counter()

    def flush(self) -> None:
        """Makes metrics.jsonl whole up to here, wherever it lies."""
        if self._writes:
            self._file.flush()

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        self.final |= values
        if self._writes:
            self._file.write(json.dumps({"step": step, **values}) + "\n")

    def _plot(self, step: int, values: Mapping[str, float]) -> None:
        if self._writes:
            for name, value in values.items():
                self._board.add_scalar(name if "/" in name else f"train/{name}", value, step)


class _MetricsFile:
    """A text file that grows. A bucket's objects cannot be appended to: there `flush` writes the whole file anew.

    It is called before each checkpoint: lines after the last one are not kept by a resumed run either.
    """

    def __init__(self, path: epath.Path, text: str) -> None:
        path.write_text(text)
        self._path, self._in_bucket = path, "://" in os.fspath(path)
        self._file = io.StringIO() if self._in_bucket else path.open("a")
        if self._in_bucket:
            self._file.write(text)

    def write(self, line: str) -> None:
        self._file.write(line)
        if not self._in_bucket:
            self._file.flush()

    def flush(self) -> None:
        if self._in_bucket:
            self._path.write_text(self._file.getvalue())

    def close(self) -> None:
        self.flush()
        self._file.close()


def _lines_until(file: epath.Path, step: int) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl up to `step`; a last line cut off in the middle is left out."""
    lines = []
    for text in file.read_text().splitlines() if file.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if line["step"] <= step:
            lines.append(line)
    return lines
