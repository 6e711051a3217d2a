"""A file of JSON lines that grows with a run, in a folder or in a bucket."""

import io
import json
import os
from collections.abc import Mapping, Sequence

from etils import epath

Line = Mapping[str, float]


class JsonLines:
    """Lines of a step and its values. A bucket's objects cannot be appended to: there `flush` writes the file anew.

    It is to be called before each checkpoint: lines after the last one are not kept by a resumed run either.
    """

    def __init__(self, path: epath.Path, lines: Sequence[Line]) -> None:
        """Opens a file that holds these lines and no others."""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        path.write_text(text)
        self._path, self._in_bucket = path, "://" in os.fspath(path)
        self._file = io.StringIO() if self._in_bucket else path.open("a")
        if self._in_bucket:
            self._file.write(text)

    def append(self, step: int, values: Line) -> None:
        """Adds a line."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        if not self._in_bucket:
            self._file.flush()

    def flush(self) -> None:
        """Makes the file whole up to here."""
        if self._in_bucket:
            self._path.write_text(self._file.getvalue())

    def close(self) -> None:
        """Flushes and closes it."""
        self.flush()
        self._file.close()


def lines_until(path: epath.Path, step: int) -> list[dict[str, float]]:
    """The lines of such a file up to `step`; a last line cut off in the middle is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if line["step"] <= step:
            lines.append(line)
    return lines
