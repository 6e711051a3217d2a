"""Lists, describes and replaces the fields of nested frozen dataclasses, such as recipes.

The full name of a field is its path from the outer dataclass, such as `train.optimizer.warmup_steps`.
"""

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

Config = TypeVar("Config")


class FieldText(NamedTuple):
    """The type, the description and the default of a field."""

    kind: Any
    comment: str  # beside the field or above it
    default: Any

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default in (dataclasses.MISSING, inspect.Parameter.empty)


def list_fields(config: object, prefix: str = "") -> dict[str, Any]:
    """Returns the value of every field of a dataclass by its full name."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        name, value = prefix + field.name, getattr(config, field.name)
        values |= list_fields(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return values


def describe_fields(config: type, prefix: str = "") -> dict[str, FieldText]:
    """Returns the type, the comment and the default of every field of a dataclass by its full name."""
    kinds, comments = typing.get_type_hints(config), _comments(config)
    found: dict[str, FieldText] = {}
    for field in dataclasses.fields(config):
        name, kind = prefix + field.name, kinds[field.name]
        text = FieldText(kind, comments.get(field.name, ""), field.default)
        nested = dataclasses.is_dataclass(kind)
        found |= describe_fields(kind, f"{name}.") if nested else {name: text}
    return found


def describe_parameters(function: Callable[..., Any]) -> dict[str, FieldText]:
    """Returns the type, the comment and the default of every parameter of a function."""
    kinds, comments = typing.get_type_hints(function), _comments(function)
    return {
        name: FieldText(kinds[name], comments.get(name, ""), parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
    }


@functools.cache  # to find the source of a class takes long
def _comments(source: Callable[..., Any]) -> dict[str, str]:
    """Returns the comments beside and above the annotated names in the source of a class or a function."""
    comments: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(source).splitlines():
        if field := re.match(r" +(\w+): [^#]*(?:# (.*))?$", line):
            comments.setdefault(field[1], " ".join([*above, field[2] or ""]).strip())
        above = [*above, line.strip("# ")] if re.match(" +# ", line) else []
    return comments


def replace_fields(config: Config, changes: Mapping[str, Any]) -> Config:
    """Returns `config` with new values, given as full name -> value.

    Each dataclass is built once, with all its changes, so that its checks see only the final values.

    Raises:
      STGTError: a dataclass refuses the new values.
    """
    direct = {name: value for name, value in changes.items() if "." not in name}
    for head in {name.partition(".")[0] for name in changes if "." in name}:
        inner = {name.partition(".")[2]: value for name, value in changes.items() if name.startswith(f"{head}.")}
        direct[head] = replace_fields(getattr(config, head), inner)
    return dataclasses.replace(config, **direct)  # type: ignore[type-var]
