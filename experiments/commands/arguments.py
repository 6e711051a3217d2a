"""Reads a command line into a command: a frozen dataclass whose fields are the options and whose `run` does the work.

The docstring is the help of the command, and the comment beside a field is the help of its option. Fields before
`KW_ONLY` are positional arguments. The field `fields: RecipeFields` adds an option for every field of a recipe. The
name of such a field may be shortened to any ending that no other has. Options may be written with `-` or `_`.
"""

import argparse
import dataclasses
import functools
import inspect
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn, Protocol

from experiments.commands.values import Figures, File, RecipeFields, format_value, read_value, type_name
from experiments.recipe_fields import describe_fields
from experiments.recipes import Recipe
from stgt_jax.checks import closest
from stgt_jax.errors import STGTError

HELP = ("-h", "--help")
RECIPE_HELP = (
    "Every field of a recipe is an option too, such as --train.num_steps 100. An ending of the name is enough if no"
    " other field has it: --num_steps 100. `stgt recipes RECIPE` lists the fields."
)


class Command(Protocol):
    """A dataclass that can run."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def run(self) -> Figures | None:
        """Does the work, prints the outcome, and returns the figures that `--json` writes."""


class CommandParser(argparse.ArgumentParser):
    """Argparse with the options of a command. A mistake raises STGTError with one line."""

    def __init__(self, command: type[Command], prog: str) -> None:
        super().__init__(prog=prog, description=inspect.getdoc(command), allow_abbrev=False,
                         argument_default=argparse.SUPPRESS)  # fmt: skip
        self.command, self.kinds = command, dict[str, Any]()
        described = describe_fields(command)
        for field in dataclasses.fields(command):
            kind, help = described[field.name]
            required = field.default is dataclasses.MISSING
            if kind is RecipeFields:
                self.epilog = RECIPE_HELP
                for name, of_recipe in describe_fields(Recipe).items():
                    self._add_option(name, of_recipe.kind, argparse.SUPPRESS)
                continue
            if not required and field.default not in (None, "", ()) and field.default is not False:
                help += f" (default: {format_value(field.default)})"
            if field.kw_only:
                self._add_option(field.name, kind, help + " (required)" * required, required=required)
            else:
                self.add_argument(field.name, metavar=field.name.upper(), nargs=None if required else "?", help=help)
        if inspect.signature(command.run).return_annotation is not None:
            self._add_option("json", File, "also write the figures to this file")

    def _add_option(self, name: str, kind: Any, help: str, *, required: bool = False) -> None:
        self.kinds[name] = kind
        self.add_argument(
            _flag(name), dest=name, type=functools.partial(read_value, kind), nargs="?" if kind is bool else None,
            metavar=type_name(kind), required=required, help=help.replace("%", "%%"),
        )  # fmt: skip

    def read(self, words: Sequence[str]) -> tuple[Command, str | None]:
        """Returns the command with the values of the command line, and the value of `--json`."""
        values = vars(self.parse_args(self._with_full_names(words)))
        json = values.pop("json", None)
        own = self.command.__dataclass_fields__
        if "fields" in own:
            values["fields"] = {name: values.pop(name) for name in [*values] if name not in own}
        return self.command(**values), json

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print."""
        raise STGTError(message if message.endswith("?") else f"{message}; see `{self.prog} --help`")

    def _with_full_names(self, words: Sequence[str]) -> list[str]:
        """Writes every option as `--full-name=value`, so that a value may begin with a dash."""
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
        # The last part of each name is compared too: a misspelt ending is far from every full name.
        near = closest(name, [*self.kinds, *(full.rpartition(".")[2] for full in self.kinds)])
        meant = _flag(near) if near in self.kinds else f"--{near}"
        self.error(f"unknown option {flag}" + (f"; did you mean '{meant}'?" if near else ""))


def _flag(name: str) -> str:
    """The option of a name: with `-`, but a recipe's field as it is written in Python."""
    return f"--{name if '.' in name else name.replace('_', '-')}"
