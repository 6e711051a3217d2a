"""Odd places: machines and users without what most have."""

import string
from collections.abc import Sequence
from pathlib import Path

from lab import Lab, Row, assert_same_run, require

# Of a folder. Orbax cannot do with a backslash, which is refused by name.
NAME = "".join(c for c in string.printable if c.isprintable() and c not in "/\\") + "äöü 視頻"
NOBODY = ("unshare", "--user", "--map-user=54321", "--map-group=54321")


def places(lab: Lab) -> list[Row]:
    """A whole training in each: it ends as everywhere, or the odd thing is named."""
    home, lab_folder = lab.place("home"), lab.folder
    home.mkdir()
    home.chmod(0o555)
    lab_folder.chmod(0o755)
    own = lab.place("own")
    own.mkdir()
    own.chmod(0o777)
    return [
        _trained(lab, "no HOME", lab.place("run"), {"HOME": ""}),
        _trained(lab, "home of another, read-only; no entry in passwd", own / "run",
                 {"HOME": str(home), "JAX_COMPILATION_CACHE_DIR": str(own / "cache")}, NOBODY),
        _trained(lab, "LC_ALL=C, another time zone", lab.place("run"), {"LC_ALL": "C", "TZ": "Pacific/Kiritimati"}),
        _trained(lab, "folder with every printable character", lab.folder / NAME / "run", {}),
    ]  # fmt: skip


def _trained(lab: Lab, name: str, workdir: Path, env: dict[str, str], wrapper: Sequence[str] = ()) -> Row:
    row, reference = Row(name), lab.reference()
    with row.attempt():
        command = lab.train(workdir, wrapper=wrapper, **env)
        require(command.ends() == 0, f"ended with {command.process.returncode}: {command.last_line}")
        require("Traceback" not in command.text, "printed a traceback")
        command.leaves_nothing()
        assert_same_run(workdir, reference)
    return row
