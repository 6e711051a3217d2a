"""Signals: from a scheduler, from a terminal, and from a terminal that is gone."""

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

from lab import Command, Failure, Lab, Row, assert_same_run, last_step, require

MOST_LINES = 2  # that a stop may add to what a run says


def stops(lab: Lab) -> list[Row]:
    """A signal to the process, or to its group as a terminal sends it; then the same command again."""
    return [
        _stopped(lab, "SIGTERM to the training", lambda command: command.signal(signal.SIGTERM), 0),
        _stopped(lab, "SIGTERM to its group", lambda command: command.signal(signal.SIGTERM, group=True), 0),
        _stopped(lab, "SIGHUP of a lost terminal", lambda command: command.signal(signal.SIGHUP, group=True), 0),
        _stopped(lab, "Ctrl-C once", lambda command: command.signal(signal.SIGINT, group=True), 130),
        _stopped(lab, "Ctrl-C twice", twice, 130),
        _stopped(lab, "SIGTERM, then SIGKILL after 10 s", as_scheduler, 0),
    ]


def twice(command: Command) -> None:
    """Presses Ctrl-C two times. Raises Failure where it has not ended after 3 s."""
    command.signal(signal.SIGINT, group=True)
    time.sleep(0.05)
    command.signal(signal.SIGINT, group=True)
    began = time.monotonic()
    command.ends(3.0)
    require(time.monotonic() - began < 3.0, "the second Ctrl-C took longer than 3 s")


def as_scheduler(command: Command) -> None:
    """Sends SIGTERM, and SIGKILL where it has not ended after 10 s; then raises Failure."""
    command.signal(signal.SIGTERM, group=True)
    try:
        command.ends(10.0)
    except Failure:
        command.signal(signal.SIGKILL, group=True)
        raise


def stop(command: Command, send: Callable[[], None], status: int) -> float:
    """Sends a signal, and returns the seconds until it has ended.

    Raises Failure where it ends with another status, or says more than it should.
    """
    before, began = _lines(command), time.monotonic()
    send()
    ended = command.ends(60.0)
    seconds = time.monotonic() - began
    require(ended == status, f"ended with {ended}: {command.last_line}")
    said = _lines(command)[len(before) :]
    require(len(said) <= MOST_LINES, f"said {len(said)} lines, among them: {said[:2]}")
    return seconds


def _stopped(lab: Lab, name: str, send: Callable[[Command], None], status: int) -> Row:
    row, reference = Row(name), lab.reference()
    for _ in range(3):
        with row.attempt():
            workdir = lab.place("stopped")
            command = lab.train(workdir)
            reached = lab.rng.randrange(1, 20)
            command.reaches(lambda workdir=workdir, step=reached: last_step(workdir) >= step, f"step {reached}")
            row.seconds.append(stop(command, lambda command=command: send(command), status))
            command.leaves_nothing()
            _finished(lab, workdir, reference)
    return row


def _lines(command: Command) -> list[str]:
    """What it has said, but for the progress bar."""
    return [
        line for line in re.split("[\r\n]", command.text) if line.strip() and not re.search(r"step/s\b|s/step\b", line)
    ]


def _finished(lab: Lab, workdir: Path, reference: Path) -> None:
    command = lab.train(workdir, "--resume")
    require(command.ends() == 0, f"the next start failed: {command.last_line}")
    command.leaves_nothing()
    assert_same_run(workdir, reference)
