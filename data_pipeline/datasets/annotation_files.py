"""Reads annotation files in the forms that data sets use. What is wrong is named by file and entry."""

import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from data_pipeline.errors import DataError
from data_pipeline.text_files import SURROGATE, read_json, read_lines, read_table
from stgt_jax.checks import parse_json


def find_file(folder: Path, *names: str) -> Path:
    """Returns the first of some files that is in a folder.

    Raises:
      DataError: none is there.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"no {' or '.join(names)} in '{folder}'; --annotations names the folder of the files")


@dataclass(frozen=True)
class Entry:
    """One object of an annotation file; what it lacks is named with its place."""

    place: str  # "entry 3 of 'file'"
    values: dict[str, Any]

    def has(self, name: str) -> bool:
        """Whether the field is there and is not null."""
        return self.values.get(name) is not None

    def text(self, name: str) -> str:
        """Returns a text, without blanks around it. A number is taken as its digits, as ids are."""
        return self._text(name, self._value(name))

    def texts(self, name: str) -> list[str]:
        """Returns a list of texts, also where a single text stands."""
        value = self._value(name)
        return [self._text(name, text) for text in (value if isinstance(value, list) else [value])]

    def entries(self, name: str) -> Iterator["Entry"]:
        """Yields the objects in a list."""
        return _entries(self._value(name), f"{name} of {self.place}")

    def _value(self, name: str) -> Any:
        if not self.has(name):
            found = ", ".join(map(str, self.values))
            raise DataError(f"{self.place} lacks '{name}' (found: {found or 'nothing'})")
        return self.values[name]

    def _text(self, name: str, value: Any) -> str:
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            raise DataError(f"{self.place}: '{name}' must be text, not {value!r:.40}")
        if SURROGATE.search(value):
            raise DataError(f"{self.place}: '{name}' has half of a surrogate pair: {value!a:.40}")
        return value.strip()


def read_entries(path: Path) -> list[Entry]:
    """Returns the objects of a JSON list, or of a file with a JSON object in every line (`.jsonl`)."""
    if path.suffix == ".jsonl":
        return [entry for number, line in enumerate(read_lines(path), 1) for entry in _line_entry(path, number, line)]
    return list(_entries(read_json(path), f"'{path}'"))


def read_entry(path: Path) -> Entry:
    """Returns the object that a JSON file holds."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"'{path}' must hold a JSON object, not {content!r:.40}")
    return Entry(f"'{path}'", content)


def read_rows(path: Path, *needed: str) -> Iterator[Entry]:
    """Yields the rows of a CSV file with a header, in which the `needed` columns must be."""

    def check_columns(columns: list[str]) -> None:
        if missing := [name for name in needed if name not in columns]:
            found = ", ".join(columns) or "none"
            raise DataError(f"'{path}' lacks the column {' and '.join(missing)} (found: {found})")

    for number, row in enumerate(read_table(path, check_columns), 1):
        yield Entry(f"row {number} of '{path}'", row)


def read_words(path: Path) -> list[list[str]]:
    """Returns the words of every line that is not blank."""
    return [line.split() for line in read_lines(path) if line.strip()]


def read_pickle(path: Path) -> Any:
    """Returns what a pickle holds, which may be plain values only; nothing in it is executed.

    Raises:
      DataError: the file is no pickle, or it asks for anything to be called.
    """
    try:
        return _PlainUnpickler(path).load()
    except DataError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(f"'{path}' cannot be read as a pickle of plain values: {error}") from error


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, path: Path) -> None:
        super().__init__(io.BytesIO(path.read_bytes()), encoding="utf-8")  # of the texts that Python 2 wrote
        self._path = path

    def find_class(self, module: str, name: str) -> NoReturn:
        raise DataError(f"'{self._path}' asks to call {module}.{name}; a pickle of captions does not: do not use it")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise DataError(f"'{self._path}' refers to an object outside of it: do not use it")


def _entries(content: Any, place: str) -> Iterator[Entry]:
    if not isinstance(content, list):
        raise DataError(f"{place} must be a list of objects, not {content!r:.40}")
    for number, values in enumerate(content, 1):
        if not isinstance(values, dict):
            raise DataError(f"entry {number} of {place} must be an object, not {values!r:.40}")
        yield Entry(f"entry {number} of {place}", values)


def _line_entry(path: Path, number: int, line: str) -> Iterator[Entry]:
    if not line.strip():
        return
    try:
        values = parse_json(line)
    except ValueError as error:
        raise DataError(f"bad JSON in line {number} of '{path}': {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"line {number} of '{path}' must be an object, not {values!r:.40}")
    yield Entry(f"line {number} of '{path}'", values)
