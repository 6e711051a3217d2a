"""Whether each locked version was published in the last two years, or its package is named in old.txt with a reason.

Run by `make audit`: `check_age.py UV`, the program of that name, which knows when a version was published.
"""

import datetime
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
LOCKED = [*FOLDER.glob("lock-*.txt"), FOLDER.parent / "requirements-oracles.txt"]
TWO_YEARS_AGO = (datetime.date.today() - datetime.timedelta(days=730)).isoformat()


def is_old(uv: str, pinned: str) -> bool:
    """Whether this version, "name==version", was there two years ago. Raises RuntimeError where that is not known."""
    command = [uv, "pip", "compile", "-", "--no-deps", "--quiet", "--exclude-newer"]
    done = subprocess.run(
        [*command, TWO_YEARS_AGO], input=pinned, capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode and "exclude-newer" not in done.stderr:
        raise RuntimeError(f"{pinned}: {done.stderr.strip()}")
    return done.returncode == 0


def main(uv: str) -> int:
    """Prints what is old and has no reason, and reasons for what is not old; returns how many there are."""
    text = "\n".join(file.read_text() for file in LOCKED)
    pinned = sorted(set(re.findall(r"^[\w.-]+==[\w.]+", text, re.MULTILINE)))
    old = {one.split("==")[0] for one in pinned if is_old(uv, one)}
    named = set(re.findall(r"^([\w.-]+): \S", (FOLDER / "old.txt").read_text(), re.MULTILINE))
    for name in sorted(old - named):
        print(f"{name}: is more than two years old; replace it, or give a reason in requirements/old.txt")
    for name in sorted(named - old):
        print(f"{name}: is not old, or not locked; remove it from requirements/old.txt")
    print(f"{len(pinned)} locked versions, {len(old)} of them older than {TWO_YEARS_AGO}")
    return len(old ^ named)


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1])))
