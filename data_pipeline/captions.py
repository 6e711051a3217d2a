"""Reads caption files: CSV with a header, or a JSON list of objects.

The fields are `video` (a path relative to the caption file's folder), `caption` and, optionally, `group`. A video may
occur in several rows. Clips of one group differ only in the order in which things happen.
"""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError


@dataclasses.dataclass(frozen=True)
class CaptionRow:
    """One row. A missing field is empty."""

    video: str
    caption: str
    group: str = ""


def read_captions(path: str | Path) -> list[CaptionRow]:
    """Reads a `.csv` or `.json` caption file, in its order. Rows with empty fields are kept.

    Raises:
      DataError: no such file, another kind of file, bad CSV or JSON, a missing column, or a field that is not text.
    """
    path = Path(path)
    readers = {".csv": _read_csv, ".json": _read_json}
    if path.suffix.lower() not in readers:
        raise DataError(f"caption file '{path}' is neither .csv nor .json")
    if not path.is_file():
        raise DataError(f"no caption file '{path}'")
    try:
        records = readers[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise DataError(f"caption file '{path}' is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise DataError(f"caption file '{path}' cannot be read: {error.strerror}") from error
    if not records:
        raise DataError(f"caption file '{path}' has no rows")
    return [_to_row(path, number, record) for number, record in enumerate(records, 1)]


def _read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:  # -sig: spreadsheets write a byte order mark first
        reader = csv.DictReader(file, strict=True)
        try:
            _check_columns(path, reader.fieldnames or [])
            records = []
            for record in reader:
                if None in record:  # an unquoted comma: the caption's end would be lost
                    raise DataError(f"line {reader.line_num} of '{path}' has more cells than columns: quote its commas")
                records.append(record)
        except csv.Error as error:
            raise DataError(f"bad CSV in '{path}', line {reader.line_num}: {error}") from error
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
    missing = [name for name in ("video", "caption") if name not in columns]
    if missing:
        found = ", ".join(sorted(map(str, columns))) or "none"
        hint = "; separate columns with commas" if ";" in found or "\t" in found else ""
        raise DataError(f"caption file '{path}' lacks the column {' and '.join(missing)} (found: {found}){hint}")


def _to_row(path: Path, number: int, record: dict[str, Any]) -> CaptionRow:
    values = {field.name: record.get(field.name) for field in dataclasses.fields(CaptionRow)}
    for name, value in values.items():
        if value is not None and not isinstance(value, str):
            raise DataError(f"row {number} of '{path}': {name} must be text, not {value!r:.40}")
    return CaptionRow(**{name: (value or "").strip() for name, value in values.items()})
