"""Worker processes that end in good order: after their parent, and never before it."""

import collections
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.synchronize import Event
from typing import Any, TypeVar

from stgt_jax.signal_handlers import handling

_Item = TypeVar("_Item")
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_is_stopped = False  # whether the parent has set `stop`, as the handler of this worker's signal saw it
_is_calling = False  # whether this worker is within `call_until_stopped`

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def start_worker(*_: object) -> None:
    """Prepares a worker process, as the function that a pool of processes calls first in each.

    The worker ignores SIGTERM, SIGINT and SIGHUP: a scheduler, Ctrl-C, or the end of a terminal sends them to every
    process of a job, but the parent still needs results to end in good order. The worker ends when its parent ends,
    even if that is killed; else it would wait for ever to hand over its next result.
    """
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    keep_freed_memory()
    end_with_parent()


def end_with_parent() -> None:
    """Ends this process as soon as the one that started it has ended, even if that was killed."""
    threading.Thread(target=_end_after_parent, daemon=True).start()


def start_stoppable_worker(stop: Event) -> None:
    """`start_worker` for a worker whose calls of `call_until_stopped` end as soon as the parent sets `stop`.

    The worker itself goes on: if it were killed while it hands over a result, the parent would wait for the rest.
    """
    start_worker()
    signal.signal(signal.SIGUSR1, _interrupt)
    threading.Thread(target=_interrupt_when_set, args=(stop,), daemon=True).start()


def call_until_stopped(function: Callable[..., Any], *args: Any) -> Any:
    """Returns `function(*args)`, called in a worker of `start_stoppable_worker`.

    Raises:
      KeyboardInterrupt: the parent has set `stop`.
    """
    global _is_calling
    _is_calling = True  # from here on the signal ends the call
    try:
        if _is_stopped:  # not `stop.is_set()`: interrupted there, it would keep the lock that all workers share
            raise KeyboardInterrupt
        return function(*args)
    finally:
        _is_calling = False


def start_resource_tracker() -> None:
    """Starts the process of `multiprocessing` that removes what this one leaves in shared memory if it is killed.

    It does so without its warnings, which would come after the last line of a command that was interrupted. It ignores
    SIGHUP, as it does SIGINT and SIGTERM: the end of a terminal would else end it before this process.
    """
    quiet = "ignore:resource_tracker:UserWarning"
    sys.warnoptions.append(quiet)  # from which it takes its options
    try:
        with handling([signal.SIGHUP], signal.SIG_IGN):
            resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(quiet)


@contextlib.contextmanager
def no_signal_while_starting() -> Iterator[None]:
    """Holds back signals, as `hold_signals`, while worker processes are started inside.

    Workers start with them blocked: else Ctrl-C, which goes to all processes of a terminal, ends one that has not got
    to `start_worker` yet. This process does not leave one half started.
    """
    start_resource_tracker()  # `multiprocessing` starts it with the first worker, and lets all signals in then
    with hold_signals():
        yield


@contextlib.contextmanager
def hold_signals() -> Iterator[None]:
    """Holds back SIGTERM, SIGINT and SIGHUP inside: they take effect at the end."""
    held: list[int] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # of this thread; others still take signals for it
    try:
        with handling(_STOPS, lambda number, _: held.append(number)):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for waiting in held:
            signal.raise_signal(waiting)


def ahead(items: Iterable[_Item], count: int) -> Iterator[_Item]:
    """Yields the items in their order, but takes `count` more before it yields one.

    Where taking an item submits work to a pool, as many results are computed ahead, and no more are in memory.
    """
    taken: collections.deque[_Item] = collections.deque()
    for item in items:
        taken.append(item)
        if len(taken) > count:
            yield taken.popleft()
    yield from taken


def keep_freed_memory() -> None:
    """Makes glibc's malloc keep the memory of freed arrays for the next ones; elsewhere it does nothing.

    By default an array of a clip's size is given back to the system and taken again, page by page, which costs the
    loader a third of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _end_after_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _interrupt_when_set(stop: Event) -> None:
    stop.wait()
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


def _interrupt(*_: object) -> None:
    global _is_stopped
    _is_stopped = True
    if _is_calling:
        raise KeyboardInterrupt
