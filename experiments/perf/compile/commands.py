"""The command `stgt compile`: its options, and the few lines that run it."""

import argparse
import os
from collections.abc import Callable
from typing import Any

from experiments.options import apply_options
from experiments.recipes import RECIPES, get_recipe

AddCommand = Callable[..., argparse.ArgumentParser]


def add_compile_command(commands: Any, add_command: AddCommand) -> None:
    """Adds it to argparse's sub-commands, by the function that adds every command of `stgt`."""
    command = add_command(
        commands,
        "compile",
        _run,
        "Compile a recipe's train step for a TPU slice, without a TPU: memory, FLOPs, what is sent, the least time.",
        json="the figures",
        takes_recipe_options=True,
    )
    command.add_argument("recipe", metavar="RECIPE", help=", ".join(RECIPES))
    command.add_argument("--topology", metavar="NAME", required=True, help="of a slice, as v5e:16x16 or v4:4x4x8")
    command.add_argument("--num-slices", metavar="N", type=int, default=1, help="slices of that kind (%(default)s)")
    command.add_argument("--text-length", metavar="S", type=int, help="tokens a caption (32, or what the model reads)")


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    recipe = apply_options(
        get_recipe(arguments.recipe),
        arguments.recipe_options,
        also_known=("topology", "num-slices", "text-length", "json", "help"),
    )
    # Read by jax when imported. Nothing runs, so no accelerator need be taken; and without one a program for it cannot
    # be read from the cache again.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    from experiments.perf.compile.report import format_figures
    from experiments.perf.compile.train_step import compile_recipe

    figures = compile_recipe(
        recipe, arguments.topology, num_slices=arguments.num_slices, text_length=arguments.text_length
    )
    print(format_figures(figures))
    return figures
