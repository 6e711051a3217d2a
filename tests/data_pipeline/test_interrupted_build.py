"""Builds that are killed or run out of disk space: no worker is left, no folder, and no traceback."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from clips import write_clip

from data_pipeline.build import build_shards
from data_pipeline.processes import call_until_stopped, start_stoppable_worker
from data_pipeline.shards import open_shards

pytestmark = pytest.mark.slow

BUILD = """
import resource, signal, sys
from data_pipeline import build
from data_pipeline.errors import DataError
if __name__ == "__main__":
    captions, out, limit = sys.argv[1:]
    if int(limit):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write beyond the limit fails like one to a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    try:
        build.build_shards(captions, out, split="train", num_kept_frames=8, resize=224, max_text_length=8,
                           encoding="raw", num_workers=2 if not int(limit) else 0, progress=False)
    except DataError as error:
        sys.exit(f"one line: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
"""
ENDS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}  # exit statuses


@pytest.fixture
def captions(tmp_path):
    write_clip(tmp_path / "a.mp4", 400, height=240, width=320)
    rows = "".join(f"a{index}.mp4,a ball\n" for index in range(60))
    for index in range(60):
        (tmp_path / f"a{index}.mp4").symlink_to("a.mp4")
    (tmp_path / "captions.csv").write_text(f"video,caption\n{rows}")
    return tmp_path / "captions.csv"


def start(captions: Path, out: Path, limit: int = 0) -> subprocess.Popen:
    script = captions.with_name("build.py")
    script.write_text(BUILD)
    command = [sys.executable, str(script), str(captions), str(out), str(limit)]
    here = Path(__file__).parents[2]
    # In a session of its own, so that a test can signal it and its workers alone, as a terminal does.
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(here)}, start_new_session=True
    )


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(condition, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_killed_build_leaves_no_worker_process(captions, tmp_path, number):
    process = start(captions, tmp_path / "set")
    assert wait_for(lambda: len(children(process.pid)) >= 3), "the two workers and their resource tracker"
    workers = children(process.pid)
    assert wait_for(lambda: (tmp_path / "set" / ".train.incomplete").exists())
    time.sleep(0.3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert wait_for(lambda: not any(map(is_running, workers)))
    assert process.returncode == ENDS[number]
    if number != signal.SIGKILL:
        assert not (tmp_path / "set").exists() and not errors


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_all_processes_while_workers_start_leaves_nothing(captions, tmp_path, number):
    process = start(captions, tmp_path / "set")
    assert wait_for(lambda: len(children(process.pid)) >= 2), "the resource tracker and the first worker"
    workers = children(process.pid)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert wait_for(lambda: not any(map(is_running, workers)))
    assert process.returncode == ENDS[number] and not errors and not (tmp_path / "set").exists()


def test_stop_while_an_old_split_is_removed_leaves_a_whole_one(tmp_path, monkeypatch):
    write_clip(tmp_path / "a.mp4", 8, height=32, width=32)
    (tmp_path / "captions.csv").write_text("video,caption\na.mp4,a ball\n")
    options = {"num_kept_frames": 4, "resize": 32, "max_text_length": 8, "num_workers": 0, "progress": False}
    build_shards(tmp_path / "captions.csv", tmp_path / "set", split="train", **options)
    remove = shutil.rmtree

    def stopped(path, **options):
        for shard in path.glob("*.array_record*"):
            shard.unlink()
            raise KeyboardInterrupt
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", stopped)
    with pytest.raises(KeyboardInterrupt):
        build_shards(tmp_path / "captions.csv", tmp_path / "set", split="train", overwrite=True, **options)
    monkeypatch.undo()
    assert len(open_shards(tmp_path / "set", "train")) == 1
    build_shards(tmp_path / "captions.csv", tmp_path / "set", split="train", overwrite=True, **options)
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["train", "vocab.txt"]


def test_stop_ends_the_call_that_runs_and_refuses_the_next():
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(1, context, initializer=start_stoppable_worker, initargs=(stop,)) as pool:
        assert pool.submit(call_until_stopped, abs, -1).result() == 1
        calls = [pool.submit(call_until_stopped, time.sleep, 600) for _ in range(2)]
        assert wait_for(calls[0].running)
        stop.set()
        assert all(isinstance(call.exception(timeout=30), KeyboardInterrupt) for call in calls)


def test_call_takes_no_lock_that_workers_share():
    """A worker that is stopped while it holds one would leave the others waiting for ever."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(1, context, initializer=start_stoppable_worker, initargs=(stop,)) as pool:
        with stop._cond:  # type: ignore[attr-defined]
            assert pool.submit(call_until_stopped, abs, -1).result(timeout=30) == 1
        stop.set()


@pytest.mark.parametrize("limit", [4, 5000])  # bytes a file may have: the vocabulary does not fit, or the shards
def test_full_disk_is_one_line_that_names_the_shard_set_and_leaves_nothing(captions, tmp_path, limit):
    _, errors = start(captions, tmp_path / "set", limit).communicate(timeout=60)
    assert errors.startswith("one line: cannot write shard set") and "File too large" in errors
    assert str(tmp_path / "set") in errors and errors.count("\n") == 1
    assert not (tmp_path / "set").exists()
