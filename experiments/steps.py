"""The steps of a longer run, such as the demo: a run that is started again skips those that are finished.

The result and the time of a finished step are in `WORKDIR/steps/NAME.json`. The settings of the run are beside them: a
run with other settings is refused in the same folder.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from stgt_jax.errors import STGTError
from stgt_jax.run_folder import write_whole


class Steps:
    """The steps of a run in the folder `workdir`.

    Raises:
      STGTError: the folder holds a run with other settings.
    """

    def __init__(self, workdir: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder = Path(workdir) / "steps"
        self.seconds: dict[str, float] = {}  # of every step so far, including those of an earlier start
        path = self.folder / "settings.json"
        settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
        if path.exists():
            _check_same(read_json(path), settings, Path(workdir))
        write_json(path, settings)

    def run(
        self, name: str, title: str, step: Callable[[], dict[str, Any]], output: Path | None = None
    ) -> dict[str, Any]:
        """Returns the result of `step`, from its file if the step is finished; otherwise runs it.

        Args:
          name: of the step's file.
          title: text to print.
          step: function that returns a dict for JSON. It may find the partial output of an interrupted call.
          output: file or folder that the step writes. If it does not exist the step runs again.
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
    """Returns the contents of a JSON file.

    Raises:
      STGTError: it cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise STGTError(f"'{path}' cannot be read ({error}); delete it to continue") from error


def write_json(path: str | Path, figures: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically. NaN, which JSON does not have, becomes null."""
    file = epath.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, (json.dumps(_without_nan(figures), indent=2) + "\n").encode())


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    if hasattr(value, "item"):  # a numpy or jax scalar
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
