"""Worker processes that never outlive the process that started them."""

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """Makes this worker process end when its parent ends, even if that is killed.

    Else a worker would wait for ever to hand over its next result.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def ignore_stop_signals() -> None:
    """Makes this worker process ignore SIGTERM and SIGINT.

    A scheduler sends the one, and Ctrl-C the other, to every process of a job; but the parent still needs results to
    end in good order.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
