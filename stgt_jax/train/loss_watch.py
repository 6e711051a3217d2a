"""Looks at the loss and the gradient of every step: what is not finite, and sudden rises of the loss.

WORKDIR/anomalies.jsonl   a line for each such step, with the records of its batch, so that the clips can be looked at
"""

import collections
import logging
import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from stgt_jax.config import TrainConfig
from stgt_jax.train.json_lines import JsonLines, lines_until

WINDOW = 100  # steps before a step, with which its loss is compared
FEWEST = 20  # of them; before that no loss counts as a rise
RISE = 8.0  # standard deviations above their mean that make a rise

Origin = Callable[[], Mapping[str, Any]]
_log = logging.getLogger(__name__)


class LossWatch:
    """Watches the steps of one start of a run; process 0 writes. Skipped steps and losses before it count, too."""

    def __init__(self, workdir: epath.Path, start: int, config: TrainConfig) -> None:
        """Continues after step `start`."""
        earlier = [line for line in lines_until(workdir / "metrics.jsonl", start) if "loss" in line]
        self._losses = collections.deque((x["loss"] for x in earlier if math.isfinite(x["loss"])), maxlen=WINDOW)
        self._num_skipped = sum(int(line.get("skipped", 0)) for line in earlier)
        self._config, self._path = config, workdir / "anomalies.jsonl"
        self._writes = jax.process_index() == 0
        self._lines: JsonLines | None = None
        self._kept = lines_until(self._path, start)
        if self._writes and self._path.exists():
            self._lines = JsonLines(self._path, self._kept)

    def check(self, step: int, values: Mapping[str, float], origin: Origin) -> str:
        """Returns what ends the run after this step; empty if nothing does.

        Args:
          step: the number of the step.
          values: its metrics.
          origin: tells what its batch was made of.
        """
        loss = values["loss"]
        bad = next((name for name in ("loss", "grad_norm") if not math.isfinite(values[name])), None)
        if bad is not None:
            self._write(step, {"what": f"{bad} is {values[bad]}", "loss": loss, "batch": dict(origin())})
            return self._not_finite(f"{bad} is {values[bad]} at step {step}")
        if len(self._losses) >= FEWEST:
            mean, deviation = statistics.fmean(self._losses), statistics.stdev(self._losses)
            if loss > mean + RISE * deviation:
                what = (
                    f"loss is {loss:.4g} at step {step}; the mean of the {len(self._losses)} steps before is {mean:.4g}"
                )
                self._write(step, {"what": "loss rises", "loss": loss, "mean_before": mean, "batch": dict(origin())})
                self._warn(what)
        self._losses.append(loss)
        return ""

    def close(self) -> None:
        """Closes the file."""
        if self._lines is not None:
            self._lines.close()

    def _not_finite(self, what: str) -> str:
        if self._config.on_nonfinite == "stop":
            return f"{what} (its batch: {self._path})"
        self._num_skipped += 1
        if self._num_skipped > self._config.max_skipped_steps:
            return (
                f"{what}, after train.max_skipped_steps={self._config.max_skipped_steps} steps that were skipped (their"
                f" batches: {self._path})"
            )
        self._warn(f"{what}: skipped, {self._num_skipped} of at most {self._config.max_skipped_steps}")
        return ""

    def _warn(self, what: str) -> None:
        if self._writes:
            _log.warning("warning: %s; its batch: %s", what, self._path)

    def _write(self, step: int, values: Mapping[str, Any]) -> None:
        if self._writes:
            self._lines = self._lines or JsonLines(self._path, self._kept)
            self._lines.append(step, values)
            self._lines.flush()
