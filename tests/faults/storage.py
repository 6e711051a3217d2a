"""Storage: a disk that fills up or vanishes, a slow bucket, damaged checkpoints, a clock that goes backwards."""

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from damage import cut, flip
from fake_gcs import FakeGcs, fake_gcs
from lab import STEPS, Command, Lab, Row, assert_same_run, last_step, require

CLOCK = Path(__file__).with_name("clock")


def writes(lab: Lab) -> list[Row]:
    """Storage that fails while a run writes to it; then it is mended, and the same command continues."""
    grow = "remount,size=100m"
    ways: list[tuple[str, str, Callable[[Command, Path], None], Callable[[Path], object], str]] = [
        ("disk full", "size=2m", _wait, lambda place: _mount(place, grow), "No space left on device"),
        ("checkpoint folder deleted", "size=100m", _delete, lambda place: None, "cannot be written"),
        ("checkpoint folder replaced by one that is read-only", "size=100m", _cover, _uncover, "read back"),
    ]
    return [_failing(lab, *way) for way in ways[: lab.times(len(ways), 1)]]


def damage(lab: Lab) -> list[Row]:
    """The newest checkpoint of a run is damaged before it is resumed."""
    ways: dict[str, Callable[[Path], None]] = {
        "an array file cut off": lambda step: cut(_largest(step / "params" / "d")),
        "one bit of an array flipped": lambda step: flip(_largest(step / "params" / "d")),
        "its metadata emptied": lambda step: (step / "optimizer" / "_METADATA").write_bytes(b""),
        "the position in the data deleted": lambda step: shutil.rmtree(step / "loader"),
        "its checksums deleted": lambda step: shutil.rmtree(step / "checksums"),
        "all of it deleted": shutil.rmtree,
    }
    row, reference = Row("newest checkpoint damaged"), lab.reference()
    for name, break_it in list(ways.items())[: lab.times(len(ways), 1)]:
        with row.attempt():
            workdir = lab.place("damaged")
            shutil.copytree(reference, workdir)
            shutil.rmtree(workdir / "checkpoints" / str(STEPS))
            newest = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
            break_it(workdir / "checkpoints" / str(newest))
            began = time.monotonic()
            command = lab.train(workdir, "--resume")
            require(command.ends() == 0, f"{name}: {command.last_line}")
            row.seconds.append(time.monotonic() - began)
            assert_same_run(workdir, reference)
            aside = workdir / "damaged_checkpoints" / str(newest)
            require(aside.exists() or name == "all of it deleted", f"{name}: not set aside")
            require(f"is now {aside}" in command.text or name == "all of it deleted", f"{name}: not said")
    return [row]


def clock(lab: Lab) -> list[Row]:
    """The clock is set back an hour every three seconds."""
    row = Row("clock goes backwards")
    with row.attempt():
        workdir = lab.place("clock")
        command = lab.train(workdir, PYTHONPATH=f"{CLOCK}:{Path(__file__).parents[2]}")
        require(command.ends() == 0, command.last_line)
        assert_same_run(workdir, lab.reference())
    return [row]


def buckets(lab: Lab) -> list[Row]:
    """A run in a bucket: for a minute it answers nothing, or it is slow in each answer."""

    def be_silent(store: FakeGcs) -> None:
        store.silent = True
        time.sleep(60.0)
        store.silent = False

    def be_slow(store: FakeGcs) -> None:
        store.delay = 0.1

    ways = {"bucket answers nothing for a minute": be_silent, "bucket takes 0.1 s for each answer": be_slow}
    return [_in_bucket(lab, name, break_it) for name, break_it in ways.items()]


def _in_bucket(lab: Lab, name: str, break_it: Callable[[FakeGcs], None]) -> Row:
    row, workdir = Row(name), lab.place("bucket")
    with fake_gcs() as store, row.attempt():
        command = lab.train("gs://bucket/run", **store.environment)  # type: ignore[arg-type]
        command.reaches(lambda: "bucket/run/checkpoints/4/commit_success.txt" in store.objects, "checkpoint 4")
        break_it(store)
        began = time.monotonic()
        require(command.ends() == 0, command.last_line)
        row.seconds.append(time.monotonic() - began)
        command.leaves_nothing()
        for written in store.names("bucket/run/"):
            file = workdir / written.removeprefix("bucket/run/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(store.get(written))
        assert_same_run(workdir, lab.reference())
    return row


def _failing(
    lab: Lab, name: str, size: str, breaks: Callable[[Command, Path], None], mends: Callable[[Path], object], words: str
) -> Row:
    row, reference, workdir = Row(name), lab.reference(), lab.place("storage")
    workdir.mkdir()
    if not _mount(workdir, size):
        row.not_tried = "mounting a file system is not permitted here"
        return row
    try:
        with row.attempt():
            command = lab.train(workdir, "--keep_last=10")
            breaks(command, workdir)
            began = time.monotonic()
            status = command.ends(60.0)
            row.seconds.append(time.monotonic() - began)
            require(status == 2, f"ended with {status}: {command.last_line}")
            require(words in command.last_line and str(workdir) in command.last_line, f"said: {command.last_line}")
            require("Traceback" not in command.text, "printed a traceback")
            command.leaves_nothing()
            mends(workdir)
            command = lab.train(workdir, "--keep_last=10", "--resume")
            require(command.ends() == 0, f"the next start failed: {command.last_line}")
            assert_same_run(workdir, reference)
    finally:
        subprocess.run(["umount", "--lazy", workdir], check=False)
    return row


def _mount(place: Path, options: str) -> bool:
    mount = ["mount", "-t", "tmpfs", "-o", options, "stgt_faults", place]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


def _wait(command: Command, workdir: Path) -> None:
    command.reaches(lambda: last_step(workdir) >= 1, "step")


def _delete(command: Command, workdir: Path) -> None:
    command.reaches(lambda: last_step(workdir) >= 6, "step 6")
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)


def _cover(command: Command, workdir: Path) -> None:
    command.reaches(lambda: (workdir / "checkpoints" / "8").exists(), "step 8")
    require(_mount(workdir / "checkpoints", "ro"), "cannot mount")


def _uncover(workdir: Path) -> None:
    subprocess.run(["umount", workdir / "checkpoints"], check=True)


def _largest(folder: Path) -> Path:
    return max((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)
