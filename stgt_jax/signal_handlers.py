"""Handlers of signals that are set for a while."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


@contextlib.contextmanager
def handling(
    numbers: Iterable[int], handler: Callable[[int, FrameType | None], Any] | signal.Handlers
) -> Iterator[None]:
    """Sets the handler of some signals inside.

    A signal that is ignored stays so: `nohup` starts a program that is to outlive its terminal. In a thread it does
    nothing, as Python sets handlers in the main thread alone.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in numbers if in_main_thread}
    taken = {number: known for number, known in before.items() if known is not signal.SIG_IGN}
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, known in taken.items():
            signal.signal(number, known or signal.SIG_DFL)  # None: a handler that is not Python's
