"""Kills: SIGKILL at any moment of training, and of every command that works for long."""

import dataclasses
import hashlib
import json
import operator
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lab import Command, Lab, Row, assert_same_run, last_step, metrics, require
from small_recipe import SMALL

from data_pipeline.build import build_shards
from data_pipeline.moving_shapes import make_moving_shapes
from stgt_jax.video_index import VideoIndex

Moment = Callable[[Command, Path], None]  # waits for the moment to kill


def random_moment(lab: Lab) -> Moment:
    """From the first import to the end of a short training."""

    def wait(command: Command, workdir: Path) -> None:
        del workdir
        delay = lab.rng.uniform(0.2, 14.0)
        while time.monotonic() < command.started + delay and command.process.poll() is None:
            time.sleep(0.01)

    return wait


def _start_up(lab: Lab) -> Moment:
    return lambda command, workdir: time.sleep(lab.rng.uniform(0.1, 4.0))


def _workers_start(lab: Lab) -> Moment:
    def wait(command: Command, workdir: Path) -> None:
        del workdir
        command.reaches(lambda: len(command.workers()) >= lab.rng.choice((1, 2)), "worker")
        time.sleep(lab.rng.uniform(0.0, 1.0))

    return wait


def checkpoint_write(lab: Lab) -> Moment:
    """While files of a checkpoint are written."""

    def wait(command: Command, workdir: Path) -> None:
        tmp = "*.orbax-checkpoint-tmp*"
        command.reaches(lambda: list((workdir / "checkpoints").glob(tmp)), "checkpoint being written")
        time.sleep(lab.rng.uniform(0.0, 0.05))

    return wait


def _validation(lab: Lab) -> Moment:
    def wait(command: Command, workdir: Path) -> None:
        def validating() -> bool:
            lines = metrics(workdir)
            return bool(lines) and lines[-1]["step"] in (12, 24) and "loss" in lines[-1]

        command.reaches(validating, "validation")
        time.sleep(lab.rng.uniform(0.0, 0.3))

    return wait


MOMENTS = {
    "at random moments": (random_moment, 20),
    "in start-up": (_start_up, 3),
    "while workers start": (_workers_start, 3),
    "in a checkpoint write": (checkpoint_write, 4),
    "in a validation": (_validation, 2),
}


def training(lab: Lab) -> list[Row]:
    """Kills the training of one process, and starts the same command again, until it is done."""
    return [_killed(lab, name, moment(lab), times) for name, (moment, times) in MOMENTS.items()]


def _killed(lab: Lab, name: str, moment: Moment, times: int) -> Row:
    row = Row(f"training killed {name}")
    reference, workdir, kills = lab.reference(), lab.place("killed"), 0
    while kills < times:
        with row.attempt():
            command = lab.train(workdir, "--resume")
            moment(command, workdir)
            if command.process.poll() is not None:  # it was done before
                require(command.process.returncode == 0, f"ended by itself: {command.last_line}")
                assert_same_run(workdir, reference)
                row.tried -= 1
                row.survived -= 1
                workdir = lab.place("killed")
                continue
            reached = last_step(workdir)
            command.signal(signal.SIGKILL)
            kills += 1
            command.ends()
            command.leaves_nothing()
            if name == "in a validation" and reached == 24:
                workdir = lab.place("killed")
    before = time.monotonic()
    with row.attempt():
        row.tried -= 1  # the last start is no fault, but it shows what is lost
        row.survived -= 1
        command = lab.train(workdir, "--resume")
        reached = last_step(workdir)
        command.reaches(lambda: last_step(workdir) != reached or command.process.poll() == 0, "step")
        row.seconds.append(time.monotonic() - before)
        require(command.ends() == 0, f"the last start failed: {command.last_line}")
        command.leaves_nothing()
        assert_same_run(workdir, reference)
    return row


@dataclasses.dataclass(frozen=True)
class Work:
    """A command that works for long: its words for a folder to write, and what must come out of it."""

    name: str
    words: Callable[[Path], list[object]]
    result: Callable[[Path], object]
    full: int  # times to kill it
    same: Callable[[Any, Any], bool] = operator.eq


def commands(lab: Lab) -> list[Row]:
    """Kills every other command that works for long, at random moments, and starts it again until it is done."""
    clips, model = lab.folder / "work_clips", lab.reference()
    make_moving_shapes(clips, num_train=200, num_test=1, image_size=96, num_frames=16, progress=False)
    build_shards(clips / "train" / "captions.csv", lab.folder / "frames", split="train", num_kept_frames=4, resize=32,
                 max_text_length=24, num_workers=0, progress=False)  # fmt: skip
    build = ["data", "build", clips / "train" / "captions.csv", "--split", "train", "--videos-per-shard", 10]
    cache = ["data", "cache-tokens", "--checkpoint", model, "--shards", lab.folder / "frames", "--videos-per-shard", 8]
    demo = ["demo", "--num-train", 16, "--num-test", 4, *SMALL]
    return [
        _killed_work(lab, work)
        for work in (
            Work("data build", lambda out: [*build, "--out", out], lambda out: _records(out / "train"), 5),
            Work("data cache-tokens", lambda out: [*cache, "--out", out], lambda out: _records(out / "train"), 3),
            Work(
                "index",
                lambda out: ["index", clips / "train", "--weights", model, "--out", out],
                _embeddings,
                3,
                _same_embeddings,
            ),
            Work("weights convert", lambda out: ["weights", "convert", model, "--out", out], _weights, 3),
            Work("demo", lambda out: [*demo, "--workdir", out], _scores, 3),
        )
    ]


def _killed_work(lab: Lab, work: Work) -> Row:
    row, reference = Row(f"{work.name} killed"), lab.place("undisturbed")
    began = time.monotonic()
    command = lab.start(*work.words(reference))
    require(command.ends() == 0, f"{work.name} failed undisturbed: {command.last_line}")
    duration = time.monotonic() - began
    require(work.result(reference), f"{work.name}: nothing to compare")
    for _ in range(work.full):
        with row.attempt():
            out = lab.place("killed_work")
            command = lab.start(*work.words(out))
            time.sleep(lab.rng.uniform(0.15, 0.7) * duration)
            command.signal(signal.SIGKILL)
            command.ends()
            command.leaves_nothing()
            began = time.monotonic()
            command = lab.start(*work.words(out))
            status = command.ends()
            if "exists already" not in command.last_line:  # it was done when it was killed
                require(status == 0, f"the next start ended with {status}: {command.last_line}")
            row.seconds.append(time.monotonic() - began)
            require(work.same(work.result(out), work.result(reference)), "the result is another than undisturbed")
            hidden = [path.name for path in out.iterdir() if path.name.startswith(".")]
            require(not hidden, f"left behind: {hidden}")
            command.leaves_nothing()
    return row


def _records(split: Path) -> object:
    return json.loads((split / "manifest.json").read_text())["records_sha256"]


def _embeddings(index: Path) -> dict[str, np.ndarray]:
    store = VideoIndex(index)
    rows = store.embeddings()
    return {path: rows[file.row : file.row + len(file.segments)] for path, file in store.files.items()}


def _same_embeddings(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether both hold the same files. Which clips are encoded at a time may change the rounding."""
    return one.keys() == other.keys() and all(np.allclose(one[path], other[path], atol=2e-3) for path in one)


def _weights(model: Path) -> object:
    return hashlib.sha256(next(model.glob("*.safetensors")).read_bytes()).hexdigest()


def _scores(demo: Path) -> object:
    checksums = [*(demo / "stage2" / "checkpoints").glob("*/checksums/metadata")]
    return [path.read_text() for path in sorted(checksums)]
