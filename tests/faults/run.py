"""Breaks real processes in every way that users' machines do, and prints what came of it: `make faults`."""

import argparse
import dataclasses
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import data
import kills
import places
import several
import short
import signals
import storage
from lab import Failure, Lab, Row, make_data

GROUPS = {
    "kills": [kills.training, kills.commands],
    "storage": [storage.writes, storage.buckets, storage.damage, storage.clock],
    "data": [data.workers, data.shards, data.memory],
    "signals": [signals.stops],
    "several": [several.processes],
    "places": [places.places],
}
INSIDE = "STGT_FAULTS_INSIDE"  # is set where /dev/shm is this program's own
# The short form has two groups, which run side by side; a core is enough for each.
SHORT_GROUPS = {
    "training": [short.one_training],
    "storage": [storage.writes, storage.damage, data.shards],
}


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| fault | tried | survived | lost | seconds to recover |", "|---|---|---|---|---|"]
    for row in rows:
        lost = "; ".join(row.lost) or ("not tried: " + row.not_tried if row.not_tried else "nothing")
        seconds = f"{max(row.seconds):.1f}" if row.seconds else ""
        lines.append(f"| {row.fault} | {row.tried} | {row.survived} | {lost} | {seconds} |")
    return "\n".join(lines)


def with_shared_memory_of_its_own() -> None:
    """Starts this program again where /dev/shm holds nothing of others, if the system permits that."""
    mount = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs stgt_faults /dev/shm && exec "$0" "$@"']
    if INSIDE in os.environ or not shutil.which("unshare"):
        return
    if subprocess.run([*mount, "true"], capture_output=True, check=False).returncode == 0:
        os.environ[INSIDE] = "1"
        os.execvp("unshare", [*mount, sys.executable, *sys.argv])
    print("/dev/shm is shared with other programs, which must not use it meanwhile", file=sys.stderr)


def break_all(options: argparse.Namespace, names: Sequence[str]) -> list[Row]:
    """Returns the rows of these groups."""
    rows: list[Row] = []
    groups = SHORT_GROUPS if options.short else GROUPS
    with tempfile.TemporaryDirectory(prefix="stgt_faults_") as folder:
        lab = Lab(Path(folder), options.short, random.Random(options.seed))
        try:
            make_data(lab)
            for fault in [fault for name in names for fault in groups[name]]:
                began = time.monotonic()
                try:
                    made = fault(lab)
                except Failure as failure:  # before anything was broken
                    made = [Row(f"{fault.__module__}.{fault.__name__}", lost=[str(failure)])]
                rows += made
                for row in made:
                    print(dataclasses.asdict(row), file=sys.stderr, flush=True)
                print(f"{fault.__name__}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        finally:
            lab.close()
    return rows


def side_by_side(options: argparse.Namespace, names: Sequence[str]) -> list[Row]:
    """Returns the rows of these groups, each from a process and with shared memory of its own."""
    with tempfile.TemporaryDirectory(prefix="stgt_faults_") as folder:
        files = [Path(folder) / f"{name}.json" for name in names]
        environment = {name: value for name, value in os.environ.items() if name != INSIDE}
        lanes = [
            subprocess.Popen(
                [sys.executable, __file__, "--short", "--only", name, "--seed", str(options.seed), "--json", file],
                env=environment, stdout=subprocess.DEVNULL,
            )
            for name, file in zip(names, files, strict=True)
        ]  # fmt: skip
        for lane, name, file in zip(lanes, names, files, strict=True):
            lane.wait()
            if not file.exists():
                raise SystemExit(f"the group '{name}' ended with {lane.returncode}")
        return [Row(**row) for file in files for row in json.loads(file.read_text())]


def main() -> int:
    with_shared_memory_of_its_own()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the programs that are broken would ignore it
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a few of each, in at most 3 minutes")
    parser.add_argument("--only", default="", help=f"names of groups, with commas: {', '.join(GROUPS)}")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments; printed")
    parser.add_argument("--json", type=Path, help="file for the rows")
    options = parser.parse_args()
    groups = SHORT_GROUPS if options.short else GROUPS
    names = options.only.split(",") if options.only else list(groups)
    if unknown := set(names) - set(groups):
        parser.error(f"--only: no group {', '.join(sorted(unknown))}; there are {', '.join(groups)}")
    print(f"seed {options.seed}", file=sys.stderr)
    # Without shared memory of their own, groups would take each other's for left behind.
    rows = (side_by_side if options.short and len(names) > 1 and INSIDE in os.environ else break_all)(options, names)
    print(table([row for row in rows if row.tried or row.not_tried or row.lost]))
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    print(f"{platform.processor() or platform.machine()}, {time.strftime('%Y-%m-%d')}", file=sys.stderr)
    return int(any(row.lost for row in rows))


if __name__ == "__main__":
    sys.exit(main())
