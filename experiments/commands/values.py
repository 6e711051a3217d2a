"""Reads and shows the values of options, according to the types of a command's parameters."""

import argparse
import contextlib
import math
import os
import types
import typing
from typing import Any, Literal, NewType

from stgt_jax.checks import did_you_mean, literal_choices

Figures = dict[str, Any]  # results of a command
RecipeFields = NewType("RecipeFields", dict[str, Any])  # full name -> new value, for `replace_fields`
Folder = NewType("Folder", str)  # a folder that can be written to
File = NewType("File", str)  # a file that can be written

WORDS: dict[Any, dict[str, Any]] = {bool: {"true": True, "false": False}, types.NoneType: {"none": None}}


def type_name(kind: Any) -> str:
    """Returns the name of a type for the help, such as `int`, `true|false`, `int|auto`, `float,float` or `int,...`."""
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return "|".join(parts)
    if typing.get_origin(kind) is tuple:
        return ",".join(map(type_name, parts))
    if parts:
        return "|".join(type_name(part) for part in parts if part is not types.NoneType)
    return {bool: "true|false", ...: "..."}.get(kind) or kind.__name__.lower()


def format_value(value: Any) -> str:
    """Returns a value as it is written on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(format_value, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def read_value(kind: Any, text: str) -> Any:
    """Converts text to a value of the type `kind`.

    Raises:
      argparse.ArgumentTypeError: the text does not fit the type, or the file or folder cannot be written.
    """
    try:
        return _value(kind, text)
    except (ValueError, KeyError):
        choices = literal_choices(kind)
        hint = did_you_mean(text, choices) if choices else ""
        raise argparse.ArgumentTypeError(f"expected {type_name(kind)} but got '{text}'{hint}") from None


def _value(kind: Any, text: str) -> Any:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind in WORDS:
        return WORDS[kind][text.lower()]
    if origin is Literal:
        return {choice: choice for choice in parts}[text]
    if origin is tuple:
        texts = [part for part in text.strip("()").split(",") if part]
        kinds = parts[:1] * len(texts) if parts[-1] is ... else parts
        return tuple(read_value(part, text) for part, text in zip(kinds, texts, strict=True))
    if parts:  # a union: the first type that fits; str, which fits any text, is tried last
        for part in sorted(parts, key=lambda part: part is str):
            with contextlib.suppress(ValueError, KeyError):
                return _value(part, text)
        raise ValueError
    if kind in (Folder, File):
        _check_writable(text, kind)
    value = kind(text)
    if isinstance(value, float) and not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not a finite number")
    return value


def _check_writable(path: str, kind: Any) -> None:
    """Raises ArgumentTypeError if a path cannot be written, before any work. Commands check buckets themselves."""
    if "://" in path:
        return
    folder = os.path.abspath(path if kind is Folder else os.path.dirname(path))
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    if kind is File and os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"'{path}' is a folder; name a file")
    if not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
        raise argparse.ArgumentTypeError(f"'{folder}' is not a folder that can be written to")
