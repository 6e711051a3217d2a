"""The short form of kills, signals and workers: one training suffers all of them, and is compared at its end."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import data
import kills
import signals
from lab import Command, Lab, Row, assert_same_run, last_step, require

Harm = Callable[[Lab, Command, Path], float]  # harms a training and checks its end; returns seconds until then


def one_training(lab: Lab) -> list[Row]:
    """Stops one training in many ways; after each the same command continues it."""
    harms: dict[str, Harm] = {
        "Ctrl-C once": lambda lab, command, workdir: _stop(
            command, workdir, lambda: command.signal(signal.SIGINT, group=True), 130
        ),
        "training killed in a checkpoint write": lambda lab, command, workdir: _kill(
            command, workdir, kills.checkpoint_write(lab)
        ),
        "loader's worker killed": lambda lab, command, workdir: _kill_worker(lab, command, workdir),
        "SIGTERM, then SIGKILL after 10 s": lambda lab, command, workdir: _stop(
            command, workdir, lambda: signals.as_scheduler(command), 0
        ),
        "training killed at random moments": lambda lab, command, workdir: _kill(
            command, workdir, kills.random_moment(lab)
        ),
    }
    workdir, rows = lab.place("disturbed"), []
    for name, harm in harms.items():
        rows.append(row := Row(name))
        with row.attempt():
            command = lab.train(workdir, "--resume")
            row.seconds.append(harm(lab, command, workdir))
            command.leaves_nothing()
    rows.append(row := Row("all of these to one training"))
    with row.attempt():
        began = time.monotonic()
        command = lab.train(workdir, "--resume")
        require(command.ends() == 0, f"the last start failed: {command.last_line}")
        row.seconds.append(time.monotonic() - began)
        command.leaves_nothing()
        assert_same_run(workdir, lab.reference())
    return rows


def _runs_on(command: Command, workdir: Path) -> None:
    """Waits until this start has done a step."""
    checkpoints = workdir / "checkpoints"
    saved = [int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal()] if checkpoints.exists() else []
    log = workdir / "metrics.jsonl"
    before = log.stat().st_ino if log.exists() else 0  # each start writes the log anew

    def has_stepped() -> bool:
        return log.exists() and log.stat().st_ino != before and last_step(workdir) > max(saved, default=0)

    command.reaches(has_stepped, "step")


def _stop(command: Command, workdir: Path, send: Callable[[], None], status: int) -> float:
    _runs_on(command, workdir)
    return signals.stop(command, send, status)


def _kill(command: Command, workdir: Path, moment: kills.Moment) -> float:
    moment(command, workdir)
    if command.process.poll() is not None:  # it was done before
        require(command.process.returncode == 0, f"ended by itself: {command.last_line}")
    began = time.monotonic()
    command.signal(signal.SIGKILL)
    command.ends()
    return time.monotonic() - began


def _kill_worker(lab: Lab, command: Command, workdir: Path) -> float:
    _runs_on(command, workdir)
    began = time.monotonic()
    os.kill(lab.rng.choice(data.loader_workers(command)), signal.SIGKILL)
    data.ends_with_the_reason(command, data.KILLED)
    return time.monotonic() - began
