"""What asks a training to stop: SIGTERM of a scheduler, SIGHUP of a lost terminal, SIGINT of Ctrl-C."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import jax

from stgt_jax.errors import Preempted
from stgt_jax.signal_handlers import handling

INTERRUPTED = 130  # the exit status of a program that SIGINT ended


class StopRequests:
    """Whether the run is to stop after the running step, and how it then ends."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.requested = False
        self.interrupted = False  # by SIGINT

    def stop(self, message: str) -> NoReturn:
        """Ends the run after its checkpoint is saved.

        Raises:
          KeyboardInterrupt: SIGINT asked for it.
          Preempted: anything else did.
        """
        raise KeyboardInterrupt(message) if self.interrupted else Preempted(message)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.interrupted:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            self.interrupted = True
            _say("stopping after this step, with a checkpoint; Ctrl-C again stops at once")
        if jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)  # which JAX tells all processes of the run
        else:
            self.requested = True


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Signals ask the run to stop while inside; the second SIGINT ends the process at once, whatever it is doing.

    In a notebook, which would lose its variables with the process, it raises KeyboardInterrupt.

    In a run of several processes JAX's own handler takes SIGTERM, and the processes agree on the step to stop after.
    Nothing is ever asked where Python cannot set a handler: in a thread.
    """
    requests = StopRequests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    numbers = [signal.SIGINT, signal.SIGHUP]
    if not jax.distributed.is_initialized():
        numbers.append(signal.SIGTERM)
    with _ending_at_second_interrupt(), handling(numbers, requests._ask):
        yield requests


@contextlib.contextmanager
def _ending_at_second_interrupt() -> Iterator[None]:
    """Watches the signals from a thread: a handler would wait for the main thread to return from a long computation."""
    if "ipykernel" in sys.modules or hasattr(sys, "ps1"):
        yield
        return
    reads, writes = os.pipe()
    os.set_blocking(writes, False)

    def watch() -> None:
        interrupts = 0
        while numbers := os.read(reads, 64):
            interrupts += numbers.count(signal.SIGINT)
            if interrupts > 1:
                _say("interrupted")
                os._exit(INTERRUPTED)

    watcher = threading.Thread(target=watch, name="interrupts", daemon=True)
    before = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writes)  # ends the thread
        watcher.join()
        os.close(reads)


def _say(what: str) -> None:
    """Writes a line without Python's buffers, which the interrupted code may be using."""
    with contextlib.suppress(OSError):  # the terminal is gone
        os.write(2, f"\nstgt: {what}\n".encode())  # a progress bar may be on the line
