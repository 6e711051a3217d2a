"""Options of the command line laid onto nested frozen dataclasses: `--train.num_steps 100`, or `--num_steps 100`.

A recipe's fields are its options: their names, types and defaults come from the dataclasses alone, so a misspelt name
or a value of the wrong type is refused before anything runs, and the dataclasses' own checks run on what results.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from stgt_jax.checks import did_you_mean
from stgt_jax.errors import STGTError

Config = TypeVar("Config")


def list_options(config: object, prefix: str = "") -> dict[str, Any]:
    """Returns every option of a (nested) dataclass by its full dotted name, with the value it has."""
    options: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            options |= list_options(value, f"{prefix}{field.name}.")
        else:
            options[prefix + field.name] = value
    return options


def apply_options(config: Config, arguments: Sequence[str], *, also_known: Iterable[str] = ()) -> Config:
    """Returns `config` with the command line's options laid on, all at once, so that their order does not matter.

    Args:
      config: a frozen dataclass, nested or not.
      arguments: `--name value` or `--name=value`, as the shell gives them. A name is a full dotted one, or any ending
        of it that no other option shares: `--train.num_steps`, `--num_steps`.
      also_known: names of the command's own options, only for the hint about a misspelt one.

    Raises:
      STGTError: an unknown or ambiguous name, a value missing or of the wrong type, or one the dataclasses refuse.
    """
    changes = {}
    for name, text in _split(arguments):
        path = _full_name(name, list_options(config), also_known)
        changes[path] = _parse(path, text, _annotation(config, path))
    return replace_options(config, changes)


def replace_options(config: Config, changes: Mapping[str, Any]) -> Config:
    """Returns `config` with values replaced by full dotted name; each dataclass is rebuilt, and checked, only once."""
    direct = {name: value for name, value in changes.items() if "." not in name}
    for head in {name.partition(".")[0] for name in changes if "." in name}:
        inner = {name.partition(".")[2]: value for name, value in changes.items() if name.startswith(f"{head}.")}
        direct[head] = replace_options(getattr(config, head), inner)
    return dataclasses.replace(config, **direct)  # type: ignore[type-var]


def format_value(value: Any) -> str:
    """Returns a value as it is written on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(format_value, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _split(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """`["--a", "1", "--b=2"]` -> `[("a", "1"), ("b", "2")]`."""
    pairs = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise STGTError(f"'{word}' is not an option; options are written --name value or --name=value")
        name, equals, text = word.removeprefix("--").partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise STGTError(f"option --{name} needs a value; write --{name}=VALUE")
            text = rest.pop(0)
        pairs.append((name, text))
    return pairs


def _full_name(name: str, options: Iterable[str], also_known: Iterable[str]) -> str:
    options = list(options)
    if name in options:
        return name
    endings = [option for option in options if option.endswith(f".{name}")]
    if len(endings) == 1:
        return endings[0]
    if endings:
        raise STGTError(
            f"option --{name} could be {' or '.join('--' + option for option in endings)}; write one of them"
        )
    # Compare with each option's short name as well: a misspelt short name is far from every full one.
    short = {option.rpartition(".")[2]: option for option in options}
    hint = did_you_mean(name, [*options, *short, *also_known])
    if not hint.startswith("; did you mean"):
        hint = "; `stgt recipes RECIPE` lists all"
    raise STGTError(f"unknown option --{name}{hint.replace(chr(39), chr(39) + '--', 1)}")


def _annotation(config: object, path: str) -> Any:
    *parents, leaf = path.split(".")
    for parent in parents:
        config = getattr(config, parent)
    return typing.get_type_hints(type(config))[leaf]


def _parse(option: str, text: str, annotation: Any) -> Any:
    """Reads `text` as the field's annotated type: bool, int, float, str, `X | None`, one with words, or a tuple."""
    if typing.get_origin(annotation) is tuple:
        return _parse_tuple(option, text, typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = typing.get_args(annotation)
        words = [word for kind in kinds if typing.get_origin(kind) is Literal for word in typing.get_args(kind)]
        if text in words:
            return text
        if type(None) in kinds and text.lower() == "none":
            return None
        if words and not text.lstrip("-").isdigit():
            raise STGTError(
                f"--{option}={text} is neither a number nor {' or '.join(words)}{did_you_mean(text, words)}"
            )
        (annotation,) = (k for k in kinds if k is not type(None) and typing.get_origin(k) is not Literal)
    if annotation is str or typing.get_origin(annotation) is Literal:  # the dataclass checks its choices
        return text
    if annotation is bool:
        if text.lower() not in ("true", "false"):
            raise STGTError(f"--{option}={text} is not a bool; write true or false")
        return text.lower() == "true"
    assert annotation in (int, float), f"no option can have the type {annotation} of {option}"
    try:
        number = annotation(text)
    except ValueError:
        kind = "a whole number" if annotation is int else "a number"
        raise STGTError(f"--{option}={text} is not {kind}") from None
    if not math.isfinite(number):
        raise STGTError(f"--{option}={text} is not a finite number")
    return number


def _parse_tuple(option: str, text: str, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    parts = [part for part in text.strip("()").split(",") if part]
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(parts)
    if len(parts) != len(kinds):
        raise STGTError(f"--{option}={text} must be {len(kinds)} values with commas between them")
    return tuple(_parse(option, part, kind) for part, kind in zip(parts, kinds, strict=True))
