"""Reads caption files: CSV with a header, or a JSON list of objects.

The fields are `video` (a path relative to the caption file's folder), `caption` and, optionally:

- `group`: videos of one group differ only in the order in which things happen;
- `start`, `end`: seconds; only this segment of the video is used;
- `question`, `answer`: about the video; then a row needs no caption.

A video may occur in several rows. In JSON, `caption` and `answer` may also be lists of text.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from data_pipeline.errors import DataError
from data_pipeline.text_files import SURROGATE, read_json, read_table


@dataclasses.dataclass(frozen=True, slots=True)
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


@dataclasses.dataclass(frozen=True)
class CaptionedVideos:
    """The rows of a split and where their videos are."""

    rows: list[CaptionRow]
    folder: Path | epath.Path  # that the rows' videos are relative to
    source: str  # names the rows in messages
    remarks: tuple[str, ...] = ()  # on their numbers


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
    records = readers[path.suffix.lower()](path)
    if not records:
        raise DataError(f"caption file '{path}' has no rows")
    rows = itertools.chain.from_iterable(_to_rows(path, number, record) for number, record in enumerate(records, 1))
    return list(rows)


def _read_csv(path: Path) -> list[dict[str, Any]]:
    return list(read_table(path, functools.partial(_check_columns, path)))


def _read_json(path: Path) -> list[dict[str, Any]]:
    records = read_json(path)
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
            if SURROGATE.search(texts[name]):
                raise DataError(f"row {number} of '{path}': {name} has half of a surrogate pair: {texts[name]!a:.40}")
        yield CaptionRow(**texts, **seconds, number=number)  # type: ignore[arg-type]  # one dict of texts, one of numbers


def _seconds(path: Path, number: int, name: str, value: Any) -> float | None:
    if value in (None, ""):
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        raise DataError(f"row {number} of '{path}': {name} must be seconds of at least 0, not {value!r:.40}")
    return seconds
