"""The commands `stgt bench graph-attention` and `stgt bench step`: their options, and the few lines that run them."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from experiments.options import apply_options
from experiments.recipes import RECIPES, get_recipe

Figures = dict[str, Any]
AddCommand = Callable[..., argparse.ArgumentParser]


def add_bench_commands(commands: Any, add_command: AddCommand) -> None:
    """Adds both to argparse's sub-commands, each by the function that adds every command of `stgt`."""
    _add_graph_attention(commands, add_command)
    _add_step(commands, add_command)


def _add_graph_attention(commands: Any, add_command: AddCommand) -> None:
    command = add_command(
        commands,
        "graph-attention",
        _run_graph_attention,
        "Compare the implementations of graph attention over ever longer clips: time, memory, shares of the peak.",
        json="the figures",
    )
    command.add_argument(
        "--frames", metavar="T,T,...", type=_numbers, default=(4, 8, 16, 32, 64), help="frames a clip (4,8,16,32,64)"
    )
    command.add_argument(
        "--implementations", metavar="NAME,...", type=_names, default=(), help="(dense, banded, the device's kernel)"
    )
    command.add_argument("--dtype", default="", help="(float32 on CPUs, bfloat16 on accelerators)")
    command.add_argument("--width", metavar="D", type=int, default=1408, help="of all heads together (%(default)s)")
    command.add_argument("--num-heads", metavar="H", type=int, default=16, help="(%(default)s)")
    command.add_argument("--patches", metavar="P", type=int, default=256, help="nodes a frame (%(default)s)")
    command.add_argument("--batch", metavar="B", type=int, default=1, help="clips (%(default)s)")
    command.add_argument("--repeats", metavar="N", type=int, default=5, help="runs; their median counts (%(default)s)")
    command.add_argument(
        "--seconds-limit", metavar="S", type=float, default=60.0, help="what takes longer runs once (%(default)s)"
    )
    command.add_argument("--block", action="store_true", help="the whole graph block instead of the operation alone")


def _add_step(commands: Any, add_command: AddCommand) -> None:
    command = add_command(
        commands,
        "step",
        _run_step,
        "Time one train step, whole and by part, on made-up clips: no shards are needed.",
        json="the figures",
        takes_recipe_options=True,
    )
    command.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs="?",
        default="moving_shapes_stage1",
        help=f"{', '.join(RECIPES)}; needed where options follow (%(default)s)",
    )
    command.add_argument("--repeats", metavar="N", type=int, default=5, help="runs; their median counts (%(default)s)")
    command.add_argument("--text-length", metavar="S", type=int, help="tokens a caption (32, or what the model reads)")


def _run_graph_attention(arguments: argparse.Namespace) -> Figures:
    from experiments.perf.bench.graph_attention import Settings, bench_graph_attention
    from experiments.perf.bench.graph_attention_figures import format_figures

    settings = Settings(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Settings)})
    figures = bench_graph_attention(settings)
    print(format_figures(figures))
    return figures


def _run_step(arguments: argparse.Namespace) -> Figures:
    recipe = apply_options(
        get_recipe(arguments.recipe),
        arguments.recipe_options,
        also_known=("repeats", "text-length", "json", "help"),
    )
    from experiments.perf.bench.step import bench_step, format_figures

    figures = bench_step(recipe, repeats=arguments.repeats, text_length=arguments.text_length)
    print(format_figures(figures))
    return figures


def _numbers(text: str) -> tuple[int, ...]:
    """`4,8` -> `(4, 8)`."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not whole numbers with commas between them") from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))
