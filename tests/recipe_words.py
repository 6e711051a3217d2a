"""A recipe changed by options, as a command that takes a recipe reads them."""

from collections.abc import Sequence

from experiments.commands.arguments import CommandParser
from experiments.commands.bench_step import bench_step
from experiments.recipes import Recipe, get_recipe


def recipe_with(name: str, options: Sequence[str]) -> Recipe:
    """Returns the named recipe with `options`, words such as "--num_steps=2"."""
    arguments, _ = CommandParser(bench_step, "stgt bench step").read([name, *options])
    return get_recipe(name, arguments["fields"])
