"""Runs functions in processes side by side, each on one core, with what it writes in a file."""

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import jax

from data_pipeline.processes import end_with_parent
from stgt_jax.errors import Preempted, STGTError
from stgt_jax.signal_handlers import handling
from stgt_jax.train.stop_requests import INTERRUPTED

_SPAWN = multiprocessing.get_context("spawn")  # a forked process would lose JAX's threads


@dataclass(frozen=True)
class Task:
    """A call, and the file for what it prints."""

    title: str
    function: Callable[[], None]  # that other processes can import
    log: Path


def run_side_by_side(tasks: Sequence[Task], num_processes: int) -> None:
    """Runs all tasks, as many as `num_processes` at a time, each with a core of its own where there are enough.

    Ctrl-C reaches all processes, which stop as they do on their own; SIGTERM and SIGHUP are passed on to them.

    Raises:
      STGTError: a task failed; the others are asked to stop.
      Preempted: a signal asked to stop.
    """
    with handling([signal.SIGTERM, signal.SIGHUP], _stop_as_asked):
        _run_all(tasks, num_processes)


def _stop_as_asked(*_: object) -> None:
    raise Preempted("stopped as asked; the same command continues from there")


def _run_all(tasks: Sequence[Task], num_processes: int) -> None:
    cores = _cores(num_processes)
    waiting, running = list(reversed(tasks)), dict[Any, tuple[SpawnProcess, Task, int]]()
    try:
        while waiting or running:
            while waiting and cores:
                task, core = waiting.pop(), cores.pop()
                task.log.parent.mkdir(parents=True, exist_ok=True)
                process = _SPAWN.Process(target=_run, args=(task, core), name=task.title)
                process.start()
                print(f"{task.title}: started on core {core}, see {task.log}", flush=True)
                running[process.sentinel] = process, task, core
            for sentinel in wait(list(running)):
                process, task, core = running.pop(sentinel)
                process.join()
                cores.append(core)
                if process.exitcode:
                    raise STGTError(f"{task.title}: failed; the reason is at the end of '{task.log}'")
                print(f"{task.title}: done", flush=True)
    finally:
        _stop([process for process, _, _ in running.values()])


def _cores(num_processes: int) -> list[int]:
    known = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    return [known[number % len(known)] for number in reversed(range(num_processes or len(known)))]


def _stop(processes: Sequence[SpawnProcess]) -> None:
    """Asks processes to stop, which then save a checkpoint, and waits for it."""
    for process in processes:
        process.terminate()
    for process in processes:
        with contextlib.suppress(KeyboardInterrupt):  # asked once more: they end at once
            process.join()


def _run(task: Task, core: int) -> None:
    """The work of a process. JAX takes as many threads as the process has cores, so they are set first."""
    end_with_parent()
    jax.config.update("jax_platforms", "cpu")  # several processes cannot share an accelerator
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    with task.log.open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    status = 0
    try:
        task.function()
    except Preempted:
        status = 1
    except STGTError as error:
        print(f"stgt: error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.exit(status)
