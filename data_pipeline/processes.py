"""Worker processes that end in good order: after their parent, and never before it."""

import multiprocessing
import os
import signal
import threading


def start_worker(*_: object) -> None:
    """Prepares a worker process, as the function that a pool of processes calls first in each.

    The worker ignores SIGTERM and SIGINT: a scheduler sends the one, and Ctrl-C the other, to every process of a job,
    but the parent still needs results to end in good order. The worker ends when its parent ends, even if that is
    killed; else it would wait for ever to hand over its next result.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_after_parent, daemon=True).start()


def _end_after_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
