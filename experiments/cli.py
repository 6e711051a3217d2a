"""The `stgt` command: one sub-command a task, each a few lines that call the package.

What a user can mend ends as one line, `stgt: error: ...`, and exit status 2; a training that stopped because it was
asked to (SIGTERM) says so and ends with 0. Whatever is slow to import (jax, grain) is imported inside the sub-command
that needs it, so that `--help` and a refused option are quick.
"""

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from experiments.options import apply_options, format_value, list_options
from experiments.perf.bench.commands import add_bench_commands
from experiments.perf.compile.commands import add_compile_command
from experiments.recipes import RECIPES, get_recipe
from experiments.steps import write_json
from stgt_jax.checks import did_you_mean
from stgt_jax.errors import Preempted, STGTError

Figures = dict[str, Any]
RECIPE_OPTIONS = "any field of a recipe, as --train.num_steps 100, or --num_steps 100 where one field ends so"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one `stgt` command; returns its exit status."""
    # What one command compiled the next one loads: a resumed stage, an ablation's arms. Read by jax when imported.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "stgt_jax"))
    _show_log()
    try:
        arguments, extra = _parser().parse_known_args(argv)
        if extra and not arguments.takes_recipe_options:
            name = extra[0].partition("=")[0]
            known = re.findall(r"--[\w-]+", arguments.command.format_usage())
            raise STGTError(f"unknown argument {name}{did_you_mean(name, known)}")
        arguments.recipe_options = extra
        figures = arguments.run(arguments)
        if arguments.json and figures is not None:
            write_json(arguments.json, figures)
    except Preempted as stop:
        print(f"stgt: {stop}", file=sys.stderr)
    except STGTError as error:
        print(f"stgt: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stgt: interrupted", file=sys.stderr)
        return 130
    return 0


class _ToStandardError(logging.Handler):
    """What the package remarks, such as which kernel runs, as lines of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def _show_log() -> None:
    logger = logging.getLogger("stgt_jax")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(_ToStandardError())


class _Parser(argparse.ArgumentParser):
    """Argparse, but a mistake is an STGTError, and abbreviations are refused: they could hide a recipe's option."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise STGTError(f"{message}; see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="stgt",
        description="Video-language alignment with a spatio-temporal graph transformer.",
        epilog="Start with `stgt demo`: it makes clips, trains on them, and shows what was learnt.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    data = commands.add_parser("data", help="make the embedded clips; build shards", description="Data sets.")
    data_commands = data.add_subparsers(required=True, metavar="COMMAND")
    _add_data_make(data_commands)
    _add_data_build(data_commands)
    _add_pretrain(commands)
    evaluate = commands.add_parser("eval", help="measure a checkpoint", description="Evaluations of a checkpoint.")
    _add_eval_retrieval(evaluate.add_subparsers(required=True, metavar="COMMAND"))
    bench = commands.add_parser("bench", help="measure speed and memory", description="Benchmarks.")
    add_bench_commands(bench.add_subparsers(required=True, metavar="COMMAND"), _add_command)
    add_compile_command(commands, _add_command)
    _add_ablate(commands)
    _add_report(commands)
    _add_demo(commands)
    _add_recipes(commands)
    return parser


def _add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], Figures | None],
    description: str,
    *,
    json: str = "",
    takes_recipe_options: bool = False,
) -> argparse.ArgumentParser:
    epilog = f"Recipe options: {RECIPE_OPTIONS}. `stgt recipes RECIPE` lists them." if takes_recipe_options else None
    command = commands.add_parser(name, help=description[0].lower() + description[1:].partition(".")[0],
                                  description=description, epilog=epilog)  # fmt: skip
    if json:
        command.add_argument("--json", metavar="FILE", help=f"write {json} to FILE")
    command.set_defaults(run=run, takes_recipe_options=takes_recipe_options, json=None, command=command)
    return command


def _add_data_make(commands: Any) -> None:
    command = _add_command(
        commands, "make", _data_make, "Render the embedded data set moving_shapes as mp4 clips.", json="the counts"
    )
    command.add_argument("--out", metavar="DIR", required=True, help="folder to make; gets train/ and test/")
    command.add_argument("--num-train", metavar="N", type=int, default=2400, help="training clips (%(default)s)")
    command.add_argument("--num-test", metavar="N", type=int, default=200, help="test clips (%(default)s)")
    command.add_argument("--seed", metavar="S", type=int, default=0, help="the same seed gives the same clips")


def _add_data_build(commands: Any) -> None:
    command = _add_command(
        commands,
        "build",
        _data_build,
        "Build shards from videos and their captions. A clip that cannot be decoded is skipped, counted, and listed"
        " with its reason in rejected.jsonl.",
        json="the counts",
    )
    command.add_argument(
        "captions", metavar="CAPTIONS", help="CSV with a header, or JSON list: video (path relative to it), caption"
    )
    command.add_argument("--out", metavar="DIR", required=True, help="shard set folder; further splits are added to it")
    command.add_argument("--split", default="train", help="name of this split (%(default)s)")
    command.add_argument("--vocab", metavar="FILE", help="WordPiece vocabulary; else one is trained from the captions")
    command.add_argument("--num-kept-frames", metavar="K", type=int, default=16, help="frames a clip (%(default)s)")
    command.add_argument("--resize", metavar="PX", type=int, default=256, help="short side, in pixels (%(default)s)")
    command.add_argument(
        "--max-text-length",
        metavar="S",
        type=int,
        default=32,
        help="tokens a caption, [CLS] and [SEP] too (%(default)s)",
    )
    command.add_argument("--overwrite", action="store_true", help="replace this split if it is there")


def _add_pretrain(commands: Any) -> None:
    command = _add_command(
        commands,
        "pretrain",
        _pretrain,
        "Train one stage. A second stage starts from the folder of the first: --weights.initial DIR. A frozen vision"
        " encoder takes its weights from another checkpoint: --weights.vision DIR.",
        json="the last losses and scores",
        takes_recipe_options=True,
    )
    command.add_argument("recipe", metavar="RECIPE", help=", ".join(RECIPES))
    command.add_argument("--workdir", metavar="DIR", required=True, help="gets checkpoints and TensorBoard logs")
    command.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --workdir")
    command.add_argument(
        "--profile-steps",
        metavar="FIRST:LAST",
        type=_step_range,
        help="trace these steps, as 10:15, for TensorBoard's profiler or XProf; the first after a start compiles",
    )

    several = command.add_argument_group(
        "several processes",
        "Each is started with the same command. SLURM's srun, Open MPI and Cloud TPU slices tell each what it is; else"
        " give all three of these.",
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", default="", help="address of process 0, a free port")
    several.add_argument("--num-processes", metavar="N", type=int, help="how many there are")
    several.add_argument("--process-id", metavar="I", type=int, help="which this is, from 0")
    several.add_argument(
        "--heartbeat-timeout",
        metavar="S",
        type=int,
        default=60,
        help="seconds after which one that is silent is lost, and the others end (%(default)s)",
    )


def _step_range(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"'{text}' is not the first and the last of some steps, such as 10:15")
    return int(found[1]), int(found[2])


def _add_eval_retrieval(commands: Any) -> None:
    command = _add_command(
        commands,
        "retrieval",
        _eval_retrieval,
        "Retrieve videos by text and texts by video, with and without re-ranking.",
        json="the figures",
    )
    command.add_argument("--checkpoint", metavar="DIR", required=True, help="--workdir of a training")
    command.add_argument("--shards", metavar="DIR", required=True, help="shard set folder, from `stgt data build`")
    command.add_argument("--split", default="test", help="split to read (%(default)s)")
    command.add_argument("--k-test", metavar="K", type=int, default=32, help="candidates re-ranked (%(default)s)")
    command.add_argument("--batch-size", metavar="B", type=int, default=32, help="clips at a time (%(default)s)")
    command.add_argument("--shuffle-frames", action="store_true", help="control: every clip's frames out of order")


def _add_ablate(commands: Any) -> None:
    command = _add_command(
        commands,
        "ablate",
        _ablate,
        "Train and compare: no graph, unweighted graph, full, full with CSAL. Started again, it goes on where it was.",
        json="the table",
        takes_recipe_options=True,
    )
    command.add_argument(
        "--workdir", metavar="DIR", required=True, help="gets a folder a training; best runs/demo/ablation"
    )
    command.add_argument("--shards", metavar="DIR", required=True, help="shard set folder of moving_shapes")


def _add_report(commands: Any) -> None:
    command = _add_command(
        commands,
        "report",
        _report,
        "Measure a finished demo again and draw it as one HTML page; with the ablation's table if it ran in"
        " WORKDIR/ablation.",
        json="the figures",
    )
    command.add_argument("--workdir", metavar="DIR", required=True, help="--workdir of `stgt demo`")


def _add_demo(commands: Any) -> None:
    command = _add_command(
        commands,
        "demo",
        _demo,
        "From nothing to a page of pictures: clips, shards, two stages of training, scores. Started again, it goes on"
        " where it was.",
        json="times and figures",
        takes_recipe_options=True,
    )
    command.add_argument("--workdir", metavar="DIR", default="runs/demo", help="gets everything (%(default)s)")
    command.add_argument("--num-train", metavar="N", type=int, default=2400, help="training clips (%(default)s)")
    command.add_argument("--num-test", metavar="N", type=int, default=200, help="test clips (%(default)s)")


def _add_recipes(commands: Any) -> None:
    command = _add_command(commands, "recipes", _recipes, "List the recipes, or one recipe's options and their values.")
    command.add_argument("recipe", metavar="RECIPE", nargs="?", help="list this one's options")


def _data_make(arguments: argparse.Namespace) -> Figures:
    from data_pipeline.moving_shapes import make_moving_shapes

    counts = make_moving_shapes(
        arguments.out, num_train=arguments.num_train, num_test=arguments.num_test, seed=arguments.seed
    )
    for split, count in counts.items():
        print(f"{arguments.out}/{split}: {count} clips and captions.csv")
    return counts


def _data_build(arguments: argparse.Namespace) -> Figures:
    from data_pipeline.build import build_shards

    report = build_shards(
        arguments.captions,
        arguments.out,
        split=arguments.split,
        vocab=arguments.vocab,
        num_kept_frames=arguments.num_kept_frames,
        resize=arguments.resize,
        max_text_length=arguments.max_text_length,
        overwrite=arguments.overwrite,
    )
    print(report.summary())
    return report.to_dict()


def _pretrain(arguments: argparse.Namespace) -> Figures | None:
    own = re.findall(r"--([\w-]+)", arguments.command.format_usage())
    recipe = apply_options(get_recipe(arguments.recipe), arguments.recipe_options, also_known=own)
    import jax

    from stgt_jax.distributed import joined

    place = arguments.coordinator, arguments.num_processes, arguments.process_id
    with joined(*place, heartbeat_timeout=arguments.heartbeat_timeout):
        from experiments.pretrain import pretrain

        figures = pretrain(recipe, arguments.workdir, resume=arguments.resume, profile_steps=arguments.profile_steps)
        if jax.process_index() > 0:
            return None  # process 0 speaks for all
    print("\n".join(f"{name} {value:.4g}" for name, value in figures.items()))
    return figures


def _eval_retrieval(arguments: argparse.Namespace) -> Figures:
    from experiments.evaluate import retrieval
    from stgt_jax.eval.retrieval import format_table, format_time_order

    result = retrieval(
        arguments.checkpoint,
        arguments.shards,
        split=arguments.split,
        k_test=arguments.k_test,
        batch_size=arguments.batch_size,
        shuffle_frames=arguments.shuffle_frames,
    )
    print(format_table(result))
    print(format_time_order({"frames shuffled" if arguments.shuffle_frames else "frames in order": result}))
    return result.to_dict()


def _ablate(arguments: argparse.Namespace) -> Figures:
    from experiments.ablate import run_ablation

    return run_ablation(arguments.workdir, arguments.shards, options=arguments.recipe_options)


def _report(arguments: argparse.Namespace) -> Figures:
    from experiments.demo_report import REPORT_NAME, measure_and_draw

    figures = measure_and_draw(arguments.workdir)
    print(f"{arguments.workdir}/{REPORT_NAME}")
    return figures


def _demo(arguments: argparse.Namespace) -> Figures:
    from experiments.demo import run_demo

    return run_demo(
        arguments.workdir,
        num_train=arguments.num_train,
        num_test=arguments.num_test,
        options=arguments.recipe_options,
    )


def _recipes(arguments: argparse.Namespace) -> None:
    if arguments.recipe:
        for name, value in list_options(get_recipe(arguments.recipe)).items():
            print(f"--{name} {format_value(value)}")
        return
    width = max(map(len, RECIPES))
    for name, recipe in RECIPES.items():
        print(f"{name:<{width}}  {(recipe.__doc__ or '').splitlines()[0]}")
