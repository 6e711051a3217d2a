"""Reads caption files: CSV with a header, or a JSON list of objects.

The fields are `video` (a path relative to the caption file's folder), `caption` and, optionally:

- `group`: videos of one group differ only in the order in which things happen;
- `start`, `end`: seconds; only this segment of the video is used;
- `question`, `answer`: about the video; then a row needs no caption.

A video may occur in several rows. In JSON, `caption` and `answer` may also be lists of text.
"""

import csv
import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
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


_TEXTS = ("video", "caption", "group", "question", "answer")


def read_captions(path: str | Path) -> list[CaptionRow]:
    """Reads a `.csv` or `.json` caption file, in its order. Rows with empty fields are kept.

    Raises:
      DataError: no such file, another kind of file, bad CSV or JSON, text that is not UTF-8, a missing column, or a
        field of another type.
    """
    path = Path(path)
    readers = {".csv": _read_csv, ".json": _read_json}
    if path.suffix.lower() not in readers:
        raise DataError(f"caption file '{path}' is neither .csv nor .json")
    if not path.is_file():
        raise DataError(f"no caption file '{path}'")
    try:
        records = readers[path.suffix.lower()](path)
    except UnicodeDecodeError:
        raise DataError(f"caption file '{path}' is not UTF-8 text: {_wrong_byte(path)}; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"caption file '{path}' cannot be read: {error.strerror}") from error
    if not records:
        raise DataError(f"caption file '{path}' has no rows")
    rows = itertools.chain.from_iterable(_to_rows(path, number, record) for number, record in enumerate(records, 1))
    return list(rows)


def _wrong_byte(path: Path) -> str:
    """Returns the line and the byte, from 0, of the first text that is not UTF-8."""
    position = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"line {number}, byte {position + error.start} (0x{line[error.start]:02x})"
            position += len(line)
    return "its end"


def _read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:  # -sig: spreadsheets write a byte order mark first
        reader = csv.DictReader(file, strict=True)
        first_line, records = 1, []
        try:
            _check_columns(path, reader.fieldnames or [])
            first_line = reader.line_num + 1
            for record in reader:
                if None in record:  # an unquoted comma: the caption's end would be lost
                    raise DataError(f"line {first_line} of '{path}' has more cells than columns: quote its commas")
                records.append(record)
                first_line = reader.line_num + 1
        except csv.Error as error:
            # A quote that is not closed takes in all that follows; the line where its row begins helps to find it.
            is_open = "unexpected end" in str(error) or "field limit" in str(error)
            what = f"a quote in the row that begins in line {first_line} is not closed" if is_open else str(error)
            raise DataError(
                f"bad CSV in '{path}', line {first_line if is_open else max(first_line, reader.line_num)}: {what}"
            ) from error
    return records


def _read_json(path: Path) -> list[dict[str, Any]]:
    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, RecursionError) as error:
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
