"""The entry point of `stgt`: runs a command and turns an error into one line and an exit status.

The statuses are 0 for success or a training that was preempted, 2 for a user error, 130 for an interrupt, and 141 if
the reader of the output has closed it, as `head` does. Commands import jax and other slow libraries only when they run,
so that `--help` and mistakes are answered at once.
"""

import contextlib
import logging
import os
import select
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from experiments.commands.ablate import ablate
from experiments.commands.arguments import HELP, Command, CommandParser
from experiments.commands.bench_data import bench_data
from experiments.commands.bench_graph_attention import bench_graph_attention
from experiments.commands.bench_step import bench_step
from experiments.commands.caption import caption
from experiments.commands.compile import compile
from experiments.commands.data_build import data_build
from experiments.commands.data_cache_tokens import data_cache_tokens
from experiments.commands.data_make import data_make
from experiments.commands.data_show import data_show
from experiments.commands.data_verify import data_verify
from experiments.commands.demo import demo
from experiments.commands.eval_captions import eval_captions
from experiments.commands.eval_compare import eval_compare
from experiments.commands.eval_qa import eval_qa
from experiments.commands.eval_retrieval import eval_retrieval
from experiments.commands.export import export
from experiments.commands.finetune import finetune
from experiments.commands.index import index
from experiments.commands.pretrain import pretrain
from experiments.commands.recipes import recipes
from experiments.commands.report import report
from experiments.commands.search import search
from experiments.commands.weights_convert import weights_convert
from experiments.commands.weights_export import weights_export
from experiments.commands.weights_push import weights_push
from stgt_jax.checks import did_you_mean
from stgt_jax.errors import Preempted, STGTError, StorageError

COMMANDS: dict[str, Command] = {
    "demo": demo,
    "data make": data_make,
    "data build": data_build,
    "data cache-tokens": data_cache_tokens,
    "data verify": data_verify,
    "data show": data_show,
    "pretrain": pretrain,
    "finetune": finetune,
    "eval retrieval": eval_retrieval,
    "eval captions": eval_captions,
    "eval qa": eval_qa,
    "eval compare": eval_compare,
    "caption": caption,
    "export": export,
    "index": index,
    "search": search,
    "weights convert": weights_convert,
    "weights export": weights_export,
    "weights push": weights_push,
    "ablate": ablate,
    "report": report,
    "recipes": recipes,
    "bench graph-attention": bench_graph_attention,
    "bench step": bench_step,
    "bench data": bench_data,
    "compile": compile,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one `stgt` command; returns its exit status."""
    # Commands share a cache of compiled programs. A user without a home folder has none.
    with contextlib.suppress(RuntimeError):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "stgt_jax"))
    try:
        with _log_lines_on_standard_error():
            _run(sys.argv[1:] if argv is None else argv)
        print(end="", flush=True)  # raises BrokenPipeError here rather than at exit
    except Preempted as stop:
        print(f"stgt: {stop}", file=sys.stderr)
    except STGTError as error:
        print("stgt: error:", *str(error).splitlines(), file=sys.stderr)
        if isinstance(error, StorageError):
            sys.stderr.flush()
            os._exit(2)  # threads that still try to write could keep the process for ever
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"stgt: {interrupt}" if interrupt.args else "stgt: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        # Python flushes its buffers at exit, which would fail again.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        return 141
    return 0


def _run(words: Sequence[str]) -> None:
    """Runs the command that the first word names; in a group such as `data`, the first two words."""
    group = f"{words[0]} " if words and any(name.startswith(f"{words[0]} ") for name in COMMANDS) else ""
    names, rest = [name for name in COMMANDS if name.startswith(group)], words[1:] if group else words
    if not rest:
        raise STGTError(f"name a command: {', '.join(names)}; see `stgt --help`")
    if rest[0] in (*HELP, "help"):
        print(_overview(names, group))
        return
    if rest[0] == "--version":
        print(f"stgt_jax {version('stgt-jax')}")
        return
    name = group + rest[0].replace("_", "-")
    if name not in COMMANDS:
        groups = dict.fromkeys(known.partition(" ")[0] for known in names)  # a misspelt `bench` resembles no full name
        raise STGTError(f"unknown command '{name}'{did_you_mean(name, names if group else groups)}")
    parser = CommandParser(COMMANDS[name], f"stgt {name}")
    if any(word in HELP for word in rest):
        parser.print_help()
        return
    arguments, json = parser.read(rest[1:])
    figures = COMMANDS[name](**arguments)
    if json and figures is not None:
        from experiments.steps import write_json

        write_json(json, figures)


def _overview(names: Iterable[str], group: str) -> str:
    lines = [f"  {name:<23}{(COMMANDS[name].__doc__ or '').splitlines()[0]}" for name in names]
    subject = "Video-language alignment with a spatio-temporal graph transformer."
    end = f"`stgt {group}COMMAND --help` lists a command's options. Start with `stgt demo`."
    return "\n".join([f"usage: stgt {group}COMMAND ...", "", subject, "", *lines, "", end])


@contextlib.contextmanager
def _log_lines_on_standard_error() -> Iterator[None]:
    """Writes the log of the package to standard error, for example which kernel runs."""
    logger, handler = logging.getLogger("stgt_jax"), logging.StreamHandler()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # Orbax adds a handler to the root logger, which would repeat every line
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _output_is_closed() -> bool:
    """Returns whether standard output or standard error is closed at its other end."""
    poll = select.poll()
    poll.register(1, 0)
    poll.register(2, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
