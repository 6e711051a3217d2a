"""`stgt` commands in a process of their own, one after another: only the first has to import and trace the model.

The process has one device, for which programs compile fastest. It measures peaks with small arrays.
"""

import contextlib
import functools
import io
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from processes import ROOT, environment


class CommandProcess:
    """A process that runs the commands it is given. Used in a `with` statement, at whose end it ends.

    Args:
      settings: further environment variables.
    """

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        command, env = [sys.executable, __file__], environment() | (settings or {})
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def __enter__(self) -> "CommandProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, *words: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Runs `stgt` with `words`, in `folder`; returns its status and what it wrote."""
        assert self._process.stdin and self._process.stdout
        request = {"words": [str(word) for word in words], "folder": str(folder or ROOT)}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        status, out, err = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(request["words"], status, out, err)


def save_time() -> None:
    from shared_train_step import share_train_step

    from experiments.perf.bench import graph_attention, step

    share_train_step()
    for module in (graph_attention, step):
        module.measure_peak = functools.partial(module.measure_peak, matrix_size=64, vector_bytes=2**16)


def serve() -> None:
    """Reads requests from standard input, a line each, and answers each with a line on standard output."""
    from experiments.commands.main import main

    save_time()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is written goes to standard error
    for line in sys.stdin:
        request, out, err = json.loads(line), io.StringIO(), io.StringIO()
        os.chdir(request["folder"])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main(request["words"])
            except BaseException:
                traceback.print_exc()
                status = 1
        print(json.dumps([status, out.getvalue(), err.getvalue()]), file=answers, flush=True)


if __name__ == "__main__":
    serve()
