"""Checks of options, paths and JSON, shared by all packages.

Each check raises `STGTError` with one line that names the option as `section.option`. This module and
`stgt_jax.errors` import nothing else of the project, so every package can use them.
"""

import difflib
import json
import os
import typing
from collections.abc import Iterable
from typing import Any, Literal

from stgt_jax.errors import STGTError


def closest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that `name` is probably meant to be, or None if it resembles none."""
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the end of an error message: the known name closest to `name`, or all known names if none is close.

    >>> did_you_mean("bandde", ["banded", "dense"])
    "; did you mean 'banded'?"
    >>> did_you_mean("x", ["banded", "dense"])
    '; known: banded, dense'
    """
    known = sorted(known)
    meant = closest(name, known)
    return f"; did you mean '{meant}'?" if meant else f"; known: {', '.join(known)}"


def in_bucket(path: str | os.PathLike[str]) -> bool:
    """Returns whether `path` is an address in an object store, such as gs://bucket/folder, and not a local path."""
    return "://" in os.fspath(path)


def parse_json(text: str) -> Any:
    """Returns the content of a JSON text. Raises ValueError where it is none, or is nested too deep to read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def check(ok: bool, message: str) -> None:
    """Raises STGTError with `message` unless `ok`."""
    if not ok:
        raise STGTError(message)


def check_positive(section: str, config: object, *options: str) -> None:
    """Checks that each named field of `config` is greater than 0."""
    for option in options:
        value = getattr(config, option)
        check(value > 0, f"{section}.{option}={value} must be greater than 0")


def check_not_negative(section: str, config: object, *options: str) -> None:
    """Checks that each named field of `config` is at least 0."""
    for option in options:
        value = getattr(config, option)
        check(value >= 0, f"{section}.{option}={value} must not be negative")


def check_rate(section: str, config: object, *options: str) -> None:
    """Checks that each named field of `config` lies in [0, 1)."""
    for option in options:
        value = getattr(config, option)
        check(0.0 <= value < 1.0, f"{section}.{option}={value} must lie in [0, 1)")


def check_choice(option: str, value: object, choices: Iterable[str]) -> None:
    """Checks that `value` is one of `choices`; otherwise names the closest choice."""
    choices = tuple(choices)
    check(value in choices, f"{option}='{value}' is not a choice{did_you_mean(str(value), choices)}")


def check_choices(section: str, config: object) -> None:
    """Checks every field of a dataclass that is annotated with a `Literal` of strings.

    In a union such as `int | Literal["auto"]` only strings are checked.
    """
    for option, annotation in typing.get_type_hints(type(config)).items():
        value, choices = getattr(config, option), literal_choices(annotation)
        if choices and (isinstance(value, str) or typing.get_origin(annotation) is Literal):
            check_choice(f"{section}.{option}", value, choices)


def literal_choices(annotation: Any) -> tuple[str, ...]:
    """Returns the strings that an annotation allows, itself a `Literal` or a union with one; else nothing."""
    if typing.get_origin(annotation) is Literal:
        return typing.get_args(annotation)
    return tuple(word for part in typing.get_args(annotation) for word in literal_choices(part))
