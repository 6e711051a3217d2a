"""Kills: SIGKILL at any moment of training, and of every command that works for long."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

from lab import Command, Lab, Row, assert_same_run, last_step, metrics, require

Moment = Callable[[Command, Path], None]  # waits for the moment to kill


def _random_moment(lab: Lab) -> Moment:
    def wait(command: Command, workdir: Path) -> None:
        del workdir
        delay = lab.rng.uniform(0.2, 14.0)
        while time.monotonic() < command.started + delay and command.process.poll() is None:
            time.sleep(0.01)

    return wait


def _start_up(lab: Lab) -> Moment:
    return lambda command, workdir: time.sleep(lab.rng.uniform(0.1, 4.0))


def _workers_start(lab: Lab) -> Moment:
    def wait(command: Command, workdir: Path) -> None:
        del workdir
        command.reaches(lambda: len(command.workers()) >= lab.rng.choice((1, 2)), "worker")
        time.sleep(lab.rng.uniform(0.0, 1.0))

    return wait


def _checkpoint_write(lab: Lab) -> Moment:
    def wait(command: Command, workdir: Path) -> None:
        tmp = "*.orbax-checkpoint-tmp*"
        command.reaches(lambda: list((workdir / "checkpoints").glob(tmp)), "checkpoint being written")
        time.sleep(lab.rng.uniform(0.0, 0.05))

    return wait


def _validation(lab: Lab) -> Moment:
    def wait(command: Command, workdir: Path) -> None:
        def validating() -> bool:
            lines = metrics(workdir)
            return bool(lines) and lines[-1]["step"] in (12, 24) and "loss" in lines[-1]

        command.reaches(validating, "validation")
        time.sleep(lab.rng.uniform(0.0, 0.3))

    return wait


MOMENTS = {
    "at random moments": (_random_moment, 20, 2),
    "in start-up": (_start_up, 3, 1),
    "while workers start": (_workers_start, 3, 0),
    "in a checkpoint write": (_checkpoint_write, 4, 1),
    "in a validation": (_validation, 2, 0),
}


def training(lab: Lab) -> list[Row]:
    """Kills the training of one process, and starts the same command again, until it is done."""
    return [_killed(lab, name, moment(lab), lab.times(full, short)) for name, (moment, full, short) in MOMENTS.items()]


def _killed(lab: Lab, name: str, moment: Moment, times: int) -> Row:
    row = Row(f"training killed {name}")
    if not times:
        row.not_tried = "in the full run only"
        return row
    reference, workdir, kills = lab.reference(), lab.place("killed"), 0
    while kills < times:
        with row.attempt():
            command = lab.train(workdir, "--resume")
            moment(command, workdir)
            if command.process.poll() is not None:  # it was done before
                require(command.process.returncode == 0, f"ended by itself: {command.last_line}")
                assert_same_run(workdir, reference)
                row.tried -= 1
                row.survived -= 1
                workdir = lab.place("killed")
                continue
            reached = last_step(workdir)
            command.signal(signal.SIGKILL)
            kills += 1
            command.ends()
            command.leaves_nothing()
            if name == "in a validation" and reached == 24:
                workdir = lab.place("killed")
    before = time.monotonic()
    with row.attempt():
        row.tried -= 1  # the last start is no fault, but it shows what is lost
        row.survived -= 1
        command = lab.train(workdir, "--resume")
        command.reaches(lambda: last_step(workdir) >= 1, "step")
        row.seconds.append(time.monotonic() - before)
        require(command.ends() == 0, f"the last start failed: {command.last_line}")
        command.leaves_nothing()
        assert_same_run(workdir, reference)
    return row
