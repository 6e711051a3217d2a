"""Reads caption files: CSV with a header, or a JSON list of objects.

The fields are `video` (a path relative to the caption file's folder), `caption` and, optionally:

- `group`: videos of one group differ only in the order in which things happen;
- `start`, `end`: seconds; only this segment of the video is used;
- `question`, `answer`: about the video; then a row needs no caption.

A video may occur in several rows. In JSON, `caption` and `answer` may also be lists of text.
"""

import collections
import csv
import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError


@dataclasses.dataclass(frozen=True)
class CaptionRow:
    """One caption of a video, or one question with an answer. A missing text is empty."""

    video: str
    caption: str
    group: str = ""
    start: float | None = None  # seconds
    end: float | None = None
    question: str = ""
    answer: str = ""
    number: int = dataclasses.field(default=0, compare=False)  # of the row in the file, from 1


_SURROGATE = re.compile("[\ud800-\udfff]")  # which JSON can hold as "\\ud800", and no UTF-8
_QUOTED = re.compile(r'"(?:[^"]++|"")*+"(?:,|[\r\n]|$)')  # a quoted cell with what ends it
_TEXTS = ("video", "caption", "group", "question", "answer")


def read_captions(path: str | Path) -> list[CaptionRow]:
    """Reads a `.csv` or `.json` caption file, in its order. Rows with empty fields are kept.

    Raises:
      DataError: no such file, another kind of file, bad CSV or JSON, text that is not UTF-8, half of a surrogate
        pair, a missing column, or a field of another type.
    """
    path = Path(path)
    readers = {".csv": _read_csv, ".json": _read_json}
    if path.suffix.lower() not in readers:
        raise DataError(f"caption file '{path}' is neither .csv nor .json")
    if not path.is_file():
        raise DataError(f"no caption file '{path}'")
    try:
        records = readers[path.suffix.lower()](path)
    except UnicodeError:
        raise DataError(f"caption file '{path}' is not UTF-8 text: {_wrong_byte(path)}; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"caption file '{path}' cannot be read: {error.strerror}") from error
    if not records:
        raise DataError(f"caption file '{path}' has no rows")
    rows = itertools.chain.from_iterable(_to_rows(path, number, record) for number, record in enumerate(records, 1))
    return list(rows)


def _wrong_byte(path: Path) -> str:
    """Returns the line, and the byte from 0, where UTF-8 text ends: at another byte or a NUL.

    The whole file is read again, as a decoder's error counts from the start of its buffer, not of the file.
    """
    data = path.read_bytes()
    at = [data.index(0)] if 0 in data else []
    try:
        data.decode()
    except UnicodeDecodeError as error:
        at.append(error.start)
    line = 1 + len(re.findall(rb"\r\n?|\n", data[: min(at)]))
    return f"line {line}, byte {min(at)} (0x{data[min(at)]:02x})"


def _read_csv(path: Path) -> list[dict[str, Any]]:
    columns: list[str] = []
    records: list[dict[str, Any]] = []
    first_line, lines = 1, collections.deque[str]()  # where a row begins, and all its lines: cells may have line breaks
    with path.open(newline="", encoding="utf-8-sig") as file:  # -sig: spreadsheets write a byte order mark first
        reader = csv.reader(_add_to(lines, file), strict=True)
        try:
            for cells in reader:
                if columns and len(cells) > len(columns):  # an unquoted comma: the caption's end would be lost
                    raise DataError(f"line {first_line} of '{path}' has more cells than columns: quote its commas")
                if columns and cells:
                    records.append(dict(zip(columns, cells, strict=False)))
                elif cells:  # else the line is blank
                    _check_columns(path, cells)
                    columns = cells
                first_line = reader.line_num + 1
                lines.clear()
        except csv.Error as error:
            raise DataError(f"bad CSV in '{path}', {_explain(error, first_line, ''.join(lines))}") from error
    _check_columns(path, columns)
    return records


def _add_to(lines: collections.deque[str], file: Iterable[str]) -> Iterator[str]:
    """Yields the lines of a file and adds them to `lines`. Raises UnicodeError for a NUL: it is in no text of UTF-8."""
    for line in file:
        if "\0" in line:
            raise UnicodeError("NUL")
        lines.append(line)
        yield line


def _explain(error: csv.Error, first_line: int, row: str) -> str:
    """Returns the line and what is wrong in a row: mostly a quote that is not closed, which takes in what follows."""
    at = 0
    while at >= 0:
        if not row.startswith('"', at):
            comma = row.find(",", at)
        elif quoted := _QUOTED.match(row, at):
            comma = quoted.end() - 1 if quoted[0].endswith(",") else -1
        else:
            line = first_line + len(re.findall(r"\r\n?|\n", row[:at]))
            begin = next(iter(row[at + 1 : at + 31].splitlines()), "")
            return f"line {line}: the quote before {begin!r} is not closed, or one in its text is not doubled"
        at = comma + 1 if comma >= 0 else -1
    return f"line {first_line}: {error}"


def _read_json(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    if "\0" in text:
        raise UnicodeError("NUL")
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:  # a plain ValueError: a number of thousands of digits
        raise DataError(f"bad JSON in '{path}': {error}") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError(f"caption file '{path}' must be a JSON list of objects with video and caption")
    if records:
        _check_columns(path, set().union(*records))
    return records


def _check_columns(path: Path, columns: Any) -> None:
    has_questions = "question" in columns and "answer" in columns
    missing = [
        name for name in ("video", "caption") if name not in columns and not (name == "caption" and has_questions)
    ]
    if missing:
        found = ", ".join(sorted(map(str, columns))) or "none"
        hint = "; separate columns with commas" if ";" in found or "\t" in found else ""
        raise DataError(f"caption file '{path}' lacks the column {' and '.join(missing)} (found: {found}){hint}")


def _to_rows(path: Path, number: int, record: dict[str, Any]) -> Iterator[CaptionRow]:
    """Yields a row for each caption and each answer that a record lists."""
    seconds = {name: _seconds(path, number, name, record.get(name)) for name in ("start", "end")}
    given = {name: record.get(name) for name in _TEXTS}
    lists = [given[name] if isinstance(given[name], list) else [given[name]] for name in ("caption", "answer")]
    for caption, answer in itertools.product(*(values or [None] for values in lists)):
        texts = {}
        for name, value in {**given, "caption": caption, "answer": answer}.items():
            if value is not None and not isinstance(value, str):
                raise DataError(f"row {number} of '{path}': {name} must be text, not {value!r:.40}")
            texts[name] = (value or "").strip()
            if _SURROGATE.search(texts[name]):
                raise DataError(f"row {number} of '{path}': {name} has half of a surrogate pair: {texts[name]!a:.40}")
        yield CaptionRow(**texts, **seconds, number=number)  # type: ignore[arg-type]  # one dict of texts, one of numbers


def _seconds(path: Path, number: int, name: str, value: Any) -> float | None:
    if value in (None, ""):
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        raise DataError(f"row {number} of '{path}': {name} must be seconds of at least 0, not {value!r:.40}")
    return seconds
