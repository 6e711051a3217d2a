"""The one error class for what a user can mend: a bad option, a missing file, a checkpoint of another model.

And the one for what is no error: a training that stopped because it was asked to.
"""

import difflib
from collections.abc import Iterable


class STGTError(ValueError):
    """A mistake the user can mend. The message is one line: it names the thing and says what to do."""


class Preempted(Exception):
    """A training was asked to stop, and has saved a checkpoint of the step it was in. The message says which."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the known name closest to `name`, or the whole list where none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"
