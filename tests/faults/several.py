"""Several processes of one run: one killed, frozen or slow, the first one lost, the network between them cut."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lab import STEPS, Command, Lab, Row, assert_same_run, last_step, metrics, require
from processes import free_port

HEARTBEAT = 10  # seconds
ENDS_WITHIN = HEARTBEAT + 20.0  # seconds from the fault to the end of every process that is not stopped itself
SETTINGS = ["--graph.dropout=0", "--qformer.dropout=0"]


@dataclasses.dataclass
class Group:
    """The processes of one run."""

    workdir: Path
    commands: list[Command]

    def reaches(self, step: int) -> None:
        """Waits for a step of the run."""
        self.commands[0].reaches(lambda: last_step(self.workdir) >= step, f"step {step}")

    def others_end(self, lost: int) -> float:
        """Waits until all but process `lost` have ended, each with a line that says why; returns the seconds."""
        began = time.monotonic()
        for number, command in enumerate(self.commands):
            if number == lost:
                continue
            status = command.ends(ENDS_WITHIN)
            require(status != 0, f"process {number} ended with 0")
            require("another process of this run has ended or cannot be reached" in command.text,
                    f"process {number} said: {command.last_line}")  # fmt: skip
        return time.monotonic() - began


def processes(lab: Lab) -> list[Row]:
    """What befalls one of two processes; then one process alone continues exactly."""
    kills: dict[str, Callable[[Lab, Group], float]] = {
        "one of two processes killed": lambda lab, group: _signal(group, 1, signal.SIGKILL),
        "the first of two processes killed": lambda lab, group: _signal(group, 0, signal.SIGKILL),
        "one of two processes frozen": lambda lab, group: _signal(group, 1, signal.SIGSTOP),
    }
    rows: list[Row] = []
    for name, happens in kills.items():
        rows.append(row := Row(name))
        with row.attempt():
            group = _start(lab)
            group.reaches(5)
            row.seconds.append(happens(lab, group))
            for command in group.commands:
                command.signal(signal.SIGKILL)  # one may still be frozen
            for command in group.commands:
                command.leaves_nothing()
            _continued_by_one(lab, group.workdir)
    return [*rows, _killed_at_random(lab), _slow(lab), _cut(lab)]


def _signal(group: Group, victim: int, number: int) -> float:
    group.commands[victim].signal(number)
    return group.others_end(victim)


def _start(
    lab: Lab, wrappers: Sequence[Sequence[str]] = ((), ()), address: str = "127.0.0.1", workdir: Path | None = None
) -> Group:
    workdir = workdir or lab.place("several")
    options = [*SETTINGS, "--coordinator", f"{address}:{free_port()}", "--num-processes", 2, "--heartbeat-timeout",
               HEARTBEAT, "--resume"]  # fmt: skip
    commands = [lab.train(workdir, *options, "--process-id", number, wrapper=wrappers[number]) for number in range(2)]
    return Group(workdir, commands)


def _killed_at_random(lab: Lab) -> Row:
    """Two processes, of which one or both are killed at any moment; the same two commands continue exactly."""
    row, undisturbed, group = Row("two processes killed at random moments"), _start(lab), None
    for command in undisturbed.commands:
        require(command.ends() == 0, f"undisturbed: {command.last_line}")
    for _ in range(6):
        with row.attempt():
            group = _start(lab, workdir=group.workdir if group else None)
            before = last_step(group.workdir)
            time.sleep(lab.rng.uniform(0.5, 16.0))
            victim = lab.rng.randrange(2)
            group.commands[victim].signal(signal.SIGKILL)
            # The other one notices; but in start-up it waits five minutes for this one to join.
            if lab.rng.random() < 0.5 or last_step(group.workdir) == before:
                group.commands[1 - victim].signal(signal.SIGKILL)
            began = time.monotonic()
            for command in group.commands:
                command.ends(ENDS_WITHIN)
            row.seconds.append(time.monotonic() - began)
            for command in group.commands:
                command.leaves_nothing()
    with row.attempt():
        row.tried -= 1  # the last start is no fault, but it shows what is lost
        row.survived -= 1
        group = _start(lab, workdir=group.workdir if group else None)
        for command in group.commands:
            require(command.ends() == 0, f"the last start failed: {command.last_line}")
        assert_same_run(group.workdir, undisturbed.workdir)
    return row


def _continued_by_one(lab: Lab, workdir: Path) -> None:
    """One process continues what two began: the same losses but for rounding, every step once."""
    command = lab.train(workdir, *SETTINGS, "--resume")
    require(command.ends() == 0, f"one process could not continue: {command.last_line}")
    reference = _reference(lab)
    require([line["step"] for line in metrics(workdir)] == [line["step"] for line in metrics(reference)],
            "steps are missing or repeated")  # fmt: skip
    for line, other in zip(metrics(workdir), metrics(reference), strict=True):
        if "loss" in line:
            require(abs(line["loss"] - other["loss"]) <= 2e-3, f"step {line['step']}: {line['loss']}, {other['loss']}")
    position = Path("checkpoints", str(STEPS), "loader", "metadata")
    states = [json.loads((run / position).read_text())["processes"][0] for run in (workdir, reference)]
    require(states[0] == states[1], f"another position in the data: {states}")


def _reference(lab: Lab) -> Path:
    workdir = lab.folder / "reference_of_several"
    if not workdir.exists():
        command = lab.train(workdir, *SETTINGS)
        require(command.ends() == 0, f"the undisturbed run failed: {command.last_line}")
    return workdir


def _slow(lab: Lab) -> Row:
    """A process stands still for less than the heartbeat timeout, again and again: the others wait for it."""
    row = Row("one of two processes slow")
    with row.attempt():
        group = _start(lab)
        group.reaches(3)
        for _ in range(3):
            group.commands[1].signal(signal.SIGSTOP)
            time.sleep(HEARTBEAT / 2)
            group.commands[1].signal(signal.SIGCONT)
            time.sleep(1.0)
        for command in group.commands:
            require(command.ends() == 0, command.last_line)
        require(last_step(group.workdir) == STEPS, "not all steps were done")
    return row


def _cut(lab: Lab) -> Row:
    """Two network namespaces, and a cable between them that is unplugged."""
    row = Row("network between two processes cut")
    with contextlib.ExitStack() as stack:
        try:
            names = stack.enter_context(_two_hosts())
        except (OSError, subprocess.CalledProcessError) as error:
            row.not_tried = f"network namespaces are not permitted here ({error})"
            return row
        with row.attempt():
            group = _start(lab, [["ip", "netns", "exec", name] for name in names], "10.77.0.1")
            group.reaches(5)
            _ip("-n", names[0], "link", "set", "stgt0", "down")
            began = time.monotonic()
            for command in group.commands:
                require(command.ends(2 * ENDS_WITHIN) != 0, "a process ended with 0")
            row.seconds.append(time.monotonic() - began)
            _continued_by_one(lab, group.workdir)
    return row


@contextlib.contextmanager
def _two_hosts() -> Iterator[list[str]]:
    names = [f"stgt-{os.getpid()}-{number}" for number in range(2)]
    try:
        for name in names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", names[0], "link", "add", "stgt0", "type", "veth", "peer", "name", "stgt1", "netns", names[1])
        for number, name in enumerate(names):
            # `ip netns exec` puts this in the place of /etc/hosts: a process listens where its host's name leads.
            hosts = Path("/etc/netns", name, "hosts")
            hosts.parent.mkdir(parents=True)
            hosts.write_text(f"127.0.0.1 localhost\n10.77.0.{number + 1} {socket.gethostname()}\n")
            _ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", f"stgt{number}")
            _ip("-n", name, "link", "set", f"stgt{number}", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
            shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
