"""Reads text files that users bring: UTF-8, with or without a byte order mark. Errors name the line and the byte."""

import collections
import csv
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from stgt_jax.checks import parse_json

SURROGATE = re.compile("[\ud800-\udfff]")  # which JSON can hold as "\\ud800", and no UTF-8
_QUOTED = re.compile(r'"(?:[^"]++|"")*+"(?:,|[\r\n]|$)')  # a quoted cell with what ends it


def read_text(path: Path) -> str:
    """Returns the content of a text file.

    Raises:
      DataError: there is no such file, or it is not UTF-8 text.
    """
    return "".join(read_lines(path))


def read_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a text file with their ends, as they are.

    Raises:
      DataError: there is no such file, or it is not UTF-8 text.
    """
    if not path.is_file():
        raise DataError(f"no caption file '{path}'")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # -sig: spreadsheets write a byte order mark first
            yield from _without_nul(file)
    except UnicodeError:
        raise DataError(f"caption file '{path}' is not UTF-8 text: {_wrong_byte(path)}; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"caption file '{path}' cannot be read: {error.strerror}") from error


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
      DataError: there is no such file, or it is not JSON in UTF-8.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:  # a plain ValueError: a number of thousands of digits
        raise DataError(f"bad JSON in '{path}': {error}") from error


def read_table(path: Path, check_columns: Callable[[list[str]], None]) -> Iterator[dict[str, str]]:
    """Yields the rows of a CSV file with a header, by column. Blank lines are left out, missing cells at its end too.

    Args:
      path: of the file.
      check_columns: is given the columns, none for an empty file, and raises DataError where one is missing.

    Raises:
      DataError: there is no such file, or it is not CSV in UTF-8.
    """
    columns: list[str] = []
    first_line, lines = 1, collections.deque[str]()  # where a row begins, and all its lines: cells may have line breaks
    reader = csv.reader(_add_to(lines, read_lines(path)), strict=True)
    try:
        for cells in reader:
            if columns and len(cells) > len(columns):  # an unquoted comma: the caption's end would be lost
                raise DataError(f"line {first_line} of '{path}' has more cells than columns: quote its commas")
            if columns and cells:
                yield dict(zip(columns, cells, strict=False))
            elif cells:  # else the line is blank
                check_columns(cells)
                columns = cells
            first_line = reader.line_num + 1
            lines.clear()
    except csv.Error as error:
        raise DataError(f"bad CSV in '{path}', {_explain(error, first_line, ''.join(lines))}") from error
    check_columns(columns)


def _add_to(lines: collections.deque[str], file: Iterable[str]) -> Iterator[str]:
    """Yields the lines of a file and adds them to `lines`."""
    for line in file:
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


def _without_nul(lines: Iterable[str]) -> Iterator[str]:
    """Yields the lines. Raises UnicodeError for a NUL: no text holds it, and it hints at UTF-16."""
    for line in lines:
        if "\0" in line:
            raise UnicodeError("NUL")
        yield line


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
