"""Reads a command line into the arguments of a command, a function whose parameters are the options.

The docstring is the help of the command, and the comment beside a parameter is the help of its option. Parameters
before `*` are positional. A dataclass as the type of a parameter adds an option for every field of it, `RecipeFields`
for every field of a recipe. The name of a recipe's field may be shortened to any ending that no other field has.
Options may be written with `-` or `_`.
"""

import argparse
import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from experiments.commands.values import Figures, File, RecipeFields, format_value, read_value, type_name
from experiments.recipe_fields import FieldText, describe_fields, describe_parameters
from experiments.recipes import Recipe
from stgt_jax.checks import closest
from stgt_jax.errors import STGTError

Command = Callable[..., Figures | None]  # prints the outcome, and returns the figures that `--json` writes

HELP = ("-h", "--help")
RECIPE_HELP = (
    "Every field of a recipe is an option too, such as --train.num_steps 100. An ending of the name is enough if no"
    " other field has it: --num_steps 100. `stgt recipes RECIPE` lists the fields."
)


class CommandParser(argparse.ArgumentParser):
    """The parser of a command's options. A mistake raises STGTError with one line."""

    def __init__(self, command: Command, prog: str) -> None:
        super().__init__(prog=prog, description=inspect.getdoc(command), allow_abbrev=False,
                         argument_default=argparse.SUPPRESS)  # fmt: skip
        self.kinds: dict[str, Any] = {}  # type of every option
        self.groups: dict[str, tuple[type, list[str]]] = {}  # parameters with fields that are options: type, options
        self.signature = inspect.signature(command)
        for name, field in describe_parameters(command).items():
            if field.kind is RecipeFields:
                fields, self.epilog = describe_fields(Recipe), RECIPE_HELP
                self.groups[name] = dict, list(fields)
                for full_name, of_recipe in fields.items():
                    self._add_option(full_name, of_recipe, shown=False)
            elif isinstance(field.kind, type) and dataclasses.is_dataclass(field.kind):
                described = describe_fields(field.kind)
                self.groups[name] = field.kind, list(described)
                for option, of_group in described.items():
                    self._add_option(option, of_group)
            elif self.signature.parameters[name].kind is inspect.Parameter.KEYWORD_ONLY:
                self._add_option(name, field)
            else:
                several = typing.get_origin(field.kind) is tuple
                nargs = "+" if several else None if field.required else "?"
                shown = name.removesuffix("s").upper() if several else name.upper()
                kind = str if several else field.kind
                self.add_argument(
                    name, metavar=shown, nargs=nargs, type=functools.partial(read_value, kind),
                    help=field.comment + _default(field),
                )  # fmt: skip
        if self.signature.return_annotation is not None:
            self._add_option("json", FieldText(File, "also write the figures to this file", ""))

    def _add_option(self, name: str, field: FieldText, *, shown: bool = True) -> None:
        self.kinds[name] = field.kind
        required = field.required and shown
        help = field.comment + (" (required)" if required else _default(field))
        self.add_argument(
            _flag(name), dest=name, metavar=type_name(field.kind), required=required,
            type=functools.partial(read_value, field.kind), nargs="?" if field.kind is bool else None,
            help=help.replace("%", "%%") if shown else argparse.SUPPRESS,
        )  # fmt: skip

    def read(self, words: Sequence[str]) -> tuple[dict[str, Any], str | None]:
        """Parses a command line to the arguments of the command and the value of `--json`."""
        values = vars(self.parse_args(self._with_full_names(words)))
        json = values.pop("json", None)
        arguments = {name: values.pop(name) for name in self.signature.parameters if name in values}
        for name, (make, options) in self.groups.items():
            arguments[name] = make(**{option: values[option] for option in options if option in values})
        return arguments, json

    def error(self, message: str) -> NoReturn:
        """Raises the message that argparse would print."""
        raise STGTError(message if message.endswith("?") else f"{message}; see `{self.prog} --help`")

    def _with_full_names(self, words: Sequence[str]) -> list[str]:
        """Rewrites every option as `--full-name=value`, so that values may begin with a dash."""
        rest, written = list(words), []
        while rest:
            word = rest.pop(0)
            if not word.startswith("--"):
                written.append(word)
                continue
            flag, equals, text = word.partition("=")
            name = self._full_name(flag)
            if not equals and self.kinds[name] is bool:
                text = rest.pop(0) if rest and rest[0].lower() in ("true", "false") else "true"
            elif not equals:
                if not rest or rest[0].startswith("--"):
                    raise STGTError(f"option {flag} needs a value; write {flag}=VALUE")
                text = rest.pop(0)
            written.append(f"{_flag(name)}={text}")
        return written

    def _full_name(self, flag: str) -> str:
        name = flag.removeprefix("--").replace("-", "_")
        if name in self.kinds:
            return name
        found = [full for full in self.kinds if full.endswith(f".{name}")]
        if len(found) == 1:
            return found[0]
        if found:
            raise STGTError(f"option {flag} could be {' or '.join(map(_flag, found))}; write one of them")
        if longer := [full for full in self.kinds if full.endswith(f"_{name}")]:
            self.error(f"unknown option {flag}; did you mean {' or '.join(map(_flag, longer))}?")
        # A misspelt ending is not close to any full name, so the last parts are compared too.
        near = closest(name, [*self.kinds, *(full.rpartition(".")[2] for full in self.kinds)])
        meant = _flag(near) if near in self.kinds else f"--{near}"
        self.error(f"unknown option {flag}" + (f"; did you mean '{meant}'?" if near else ""))


def _flag(name: str) -> str:
    """Returns the option for a name: with `-`, except for the fields of a recipe."""
    return f"--{name if '.' in name else name.replace('_', '-')}"


def _default(field: FieldText) -> str:
    hidden = field.required or field.default in (None, "", ()) or field.default is False
    return "" if hidden else f" (default: {format_value(field.default)})"
