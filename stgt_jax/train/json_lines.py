"""A file with a JSON object on each line that grows with a run, in a folder or in a bucket.

JSON has no numbers that are not finite: they are written as null, and read as NaN.
"""

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from stgt_jax.checks import in_bucket, parse_json
from stgt_jax.run_folder import write_whole
from stgt_jax.storage import in_time

Line = Mapping[str, Any]


class JsonLines:
    """Appends lines, each a step and its values.

    Nothing can be appended to an object in a bucket: there only `flush` writes, and it writes all lines again. Call it
    before each checkpoint; a resumed run drops the lines after its checkpoint anyway.
    """

    def __init__(self, path: epath.Path, lines: Sequence[Line]) -> None:
        """Opens a file that holds these lines and no others."""
        text = "".join(_as_text(line) for line in lines)
        write_whole(path, text.encode())
        self._path, self._in_bucket = path, in_bucket(path)
        self._file = io.StringIO() if self._in_bucket else path.open("a")
        if self._in_bucket:
            self._file.write(text)
        self._is_written = True

    def append(self, step: int, values: Line) -> None:
        """Appends a line."""
        self._file.write(_as_text({"step": step, **values}))
        self._is_written = False
        if not self._in_bucket:
            self._file.flush()

    def flush(self) -> None:
        """Writes out every line appended so far."""
        if self._in_bucket and not self._is_written:
            in_time(lambda: self._path.write_text(self._file.getvalue()), os.fspath(self._path))
        self._is_written = True

    def close(self) -> None:
        """Flushes and closes it."""
        self.flush()
        self._file.close()


def read_line(text: str) -> dict[str, Any]:
    """Returns the values of a line. Raises ValueError where it is not whole."""
    values = parse_json(text)
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        raise ValueError("is not the values of a step")
    return {name: math.nan if value is None else value for name, value in values.items()}


def lines_until(path: epath.Path, step: int) -> list[dict[str, Any]]:
    """Returns the lines of such a file up to `step`, without a last line that was cut off."""
    lines = []
    for text in path.read_bytes().decode(errors="replace").splitlines() if path.exists() else []:
        try:
            line = read_line(text)
        except ValueError:
            continue
        if line["step"] <= step:
            lines.append(line)
    return lines


def _as_text(line: Line) -> str:
    finite = {n: None if isinstance(x, float) and not math.isfinite(x) else x for n, x in line.items()}
    return json.dumps(finite, allow_nan=False) + "\n"
