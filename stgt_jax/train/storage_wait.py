"""Waiting until storage has written a checkpoint, with a limit, and the reason where it cannot."""

import logging
import re
import threading
from collections.abc import Callable

SAVE_LIMIT = 1200  # seconds that a checkpoint may take; the next one waits for it
NOTICE = 60  # seconds between two lines that say so

_log = logging.getLogger(__name__)


def cause_of(error: Exception) -> str:
    """Why a write failed, without the many lines that the storage library adds."""
    text = str(error)
    if found := re.search(r"\[OS error \d+: \w+ ([^\]]+)\]", text):
        return found[1]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    for sign, reason in (("RESOURCE_EXHAUSTED", "No space left on device"), ("NOT_FOUND", "its folder is gone")):
        if sign in text:
            return reason
    return f"{type(error).__name__}: {next(iter(text.splitlines()), '')[:200]}"


def in_time(wait: Callable[[], None], what: str) -> None:
    """Calls `wait`, and says every `NOTICE` seconds that it still waits for `what` to be written.

    Raises:
      TimeoutError: it has taken `SAVE_LIMIT` seconds.
    """
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            wait()
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, name="checkpoint-wait", daemon=True)
    thread.start()
    for turn in range(1, SAVE_LIMIT // NOTICE + 1):
        thread.join(NOTICE)
        if outcome:
            break
        _log.warning("warning: %s: has been written for %d s; training waits", what, turn * NOTICE)
    if not outcome:
        raise TimeoutError(0, f"the storage has not answered for {SAVE_LIMIT} s")
    if outcome[0] is not None:
        raise outcome[0]
