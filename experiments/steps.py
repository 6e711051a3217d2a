"""Named steps of a longer run, each done once: the demo and the ablation are lists of them.

A step that finished leaves its result and its time in `WORKDIR/steps/NAME.json`; started again, the run takes it from
there. What the whole run was asked for is kept beside them, so that two different runs never mix in one folder.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from stgt_jax.errors import STGTError


class Steps:
    """The steps of the run in `workdir`.

    Raises:
      STGTError: the folder holds a run with other settings.
    """

    def __init__(self, workdir: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder = Path(workdir) / "steps"
        self.seconds: dict[str, float] = {}  # of every step so far, those of an earlier start included
        path = self.folder / "settings.json"
        settings = json.loads(json.dumps(settings))  # as the file gives them back: lists for tuples
        if path.exists():
            _check_same(read_json(path), settings, Path(workdir))
        write_json(path, settings)

    def run(
        self, name: str, title: str, step: Callable[[], dict[str, Any]], output: Path | None = None
    ) -> dict[str, Any]:
        """Returns the result of `step`, a dict for JSON: from the file where it finished before, else by running it.

        Args:
          name: the step's file name.
          title: what is printed about it.
          step: takes nothing; must cope with what a call that was cut off left behind.
          output: what the step writes; where it was deleted, the step runs again.
        """
        path = self.folder / f"{name}.json"
        if path.exists() and (output is None or output.exists()):
            done = read_json(path)
            print(f"{title}: done before, in {done['seconds']:.0f} s", flush=True)
        else:
            print(f"{title} ...", flush=True)
            start = time.perf_counter()
            result = step()
            done = {"seconds": time.perf_counter() - start, "result": result}
            write_json(path, done)
            print(f"{title}: {done['seconds']:.0f} s", flush=True)
        self.seconds[name] = done["seconds"]
        return done["result"]


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], workdir: Path) -> None:
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise STGTError(
                f"'{workdir}' holds a run with {name}={before.get(name)}, now it is {now.get(name)};"
                " choose another --workdir or delete that folder"
            )


def read_json(path: Path) -> dict[str, Any]:
    """Returns what a JSON file holds.

    Raises:
      STGTError: it can't be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise STGTError(f"'{path}' cannot be read ({error}); delete it to go on without") from error


def write_json(path: str | Path, figures: Mapping[str, Any]) -> None:
    """Writes figures as JSON, whole or not at all; NaN, which JSON has not, becomes null."""
    file = epath.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(_without_nan(figures), indent=2) + "\n")
    partial.replace(file)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    if hasattr(value, "item"):  # a numpy or jax scalar
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
