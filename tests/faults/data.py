"""Data: worker processes that are killed or stop, shards that change while they are read."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from lab import Command, Lab, Row, assert_same_run, last_step, require

from data_pipeline.build import build_shards
from data_pipeline.moving_shapes import make_moving_shapes

KILLED = "it was killed, as the system does when memory runs out"
LONG = ["--num_steps=2000", "--checkpoint_every=1000", "--eval_every=0", "--data.wait_limit=10"]


def workers(lab: Lab) -> list[Row]:
    """A worker process of the loader goes; the run says so and ends, and the same command continues."""
    ways = [
        ("loader's worker killed", signal.SIGKILL, KILLED),
        ("loader's worker frozen", signal.SIGSTOP, "no data within data.wait_limit=10 s"),
    ]
    return [_worker(lab, *way) for way in ways]


def loader_workers(command: Command) -> list[int]:
    """The loader's worker processes, by their ids."""
    return [pid for pid in command.workers() if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def ends_with_the_reason(command: Command, words: str) -> None:
    """Raises Failure unless it ends with one line with these words, or had done all of its work."""
    status = command.ends(60.0)
    if status != 0:
        require(status == 2, f"ended with {status}: {command.last_line}")
        require(words in command.last_line, f"said: {command.last_line}")
        require("Traceback" not in command.text, "printed a traceback")


def _worker(lab: Lab, name: str, number: int, words: str) -> Row:
    row, reference = Row(name), lab.reference()
    for _ in range(3):
        with row.attempt():
            workdir = lab.place("worker")
            command = lab.train(workdir, "--data.wait_limit=10")
            command.reaches(lambda workdir=workdir: last_step(workdir) >= 5, "step 5")
            began = time.monotonic()
            os.kill(lab.rng.choice(loader_workers(command)), number)
            ends_with_the_reason(command, words)
            row.seconds.append(time.monotonic() - began)
            command.leaves_nothing()
            command = lab.train(workdir, "--resume")
            require(command.ends() == 0, f"the next start failed: {command.last_line}")
            assert_same_run(workdir, reference)
    return row


def memory(lab: Lab) -> list[Row]:
    """A training that needs more memory than there is: it is refused before it begins, and smaller it runs."""
    row, workdir = Row("training larger than the memory"), lab.place("large")
    with row.attempt():
        began = time.monotonic()
        command = lab.train(workdir, "--qformer.mlp_dim=40000000")
        require(command.ends() == 2, f"ended otherwise: {command.last_line}")
        row.seconds.append(time.monotonic() - began)
        require("does not fit: it needs" in command.last_line, f"said: {command.last_line}")
        require("Traceback" not in command.text, "printed a traceback")
        command.leaves_nothing()
        command = lab.train(workdir)
        require(command.ends() == 0, f"the smaller one failed: {command.last_line}")
        assert_same_run(workdir, lab.reference())
    return [row]


def shards(lab: Lab) -> list[Row]:
    """A shard changes in mid-epoch: the run ends with its name, or its data are still whole."""
    ways: dict[str, Callable[[Path], None]] = {
        "shard truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
        "bits of a shard flipped": _flip,
        "shard overwritten": _overwrite,
        "shard deleted": Path.unlink,
    }
    rows, whole = [], lab.place("whole")
    clips = lab.folder / "large_clips"
    make_moving_shapes(clips, num_train=96, num_test=1, image_size=96, num_frames=8, progress=False)
    build_shards(clips / "train" / "captions.csv", whole, split="train", num_kept_frames=8, resize=96,
                 max_text_length=24, num_workers=0, encoding="raw", progress=False)  # fmt: skip
    for name, change in list(ways.items())[: lab.times(len(ways), 1)]:
        rows.append(row := Row(f"{name} in mid-epoch"))
        with row.attempt():
            shards, workdir = lab.place("shards"), lab.place("changed")
            shutil.copytree(whole, shards)
            file = next((shards / "train").glob("*.array_record*"))
            command = lab.train(workdir, f"--data.shards={shards}", *LONG)
            command.reaches(lambda workdir=workdir: last_step(workdir) >= 3, "step 3")
            began = time.monotonic()
            change(file)
            if name == "shard deleted":  # the file stays open: nothing is lost to this run
                command.reaches(lambda workdir=workdir: last_step(workdir) >= 60, "step 60")
                command.kill_group()
                command = lab.train(workdir, f"--data.shards={shards}", *LONG, "--resume")
            _ends_with_its_name(command, file)
            row.seconds.append(time.monotonic() - began)
    return rows


def _ends_with_its_name(command: Command, file: Path) -> None:
    status = command.ends(90.0)
    require(status == 2, f"ended with {status}: {command.last_line}")
    require(str(file) in command.last_line, f"said: {command.last_line}")
    require("Traceback" not in command.text, "printed a traceback")
    command.leaves_nothing()


def _flip(file: Path) -> None:
    with file.open("r+b") as stream:
        for part in range(1, 8):
            stream.seek(file.stat().st_size * part // 8)
            byte = stream.read(1)[0]
            stream.seek(-1, os.SEEK_CUR)
            stream.write(bytes([byte ^ 1]))


def _overwrite(file: Path) -> None:
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.write(os.urandom(size))
