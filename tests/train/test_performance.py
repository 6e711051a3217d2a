"""What a run tells of its time: step and input wait, goodput over several starts, and traces of the steps asked for."""

import json
import multiprocessing
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax_set_up  # noqa: F401  (for the process that traces, which reads no conftest.py)
import pytest
from etils import epath
from shared_train_step import share_train_step
from small import Batches, small_model, small_training

from stgt_jax.errors import STGTError
from stgt_jax.train.log import RunLog
from stgt_jax.train.loop import train
from stgt_jax.train.performance import StepTimer, Window, step_figures

pytestmark = pytest.mark.slow

# The sizes of test_loop.py: one compilation serves both.
MODEL = small_model()
CONFIG = small_training(num_steps=9, checkpoint_every=4, eval_every=8, keep_last=1, log_every=2)
NOBODY_RUNS = 1000.0  # seconds


class Computation:
    """Stands for the arrays of a step that the devices complete at a known time."""

    def __init__(self, done_at: float) -> None:
        self.done_at = done_at

    def block_until_ready(self) -> None:
        time.sleep(max(0.0, self.done_at - time.monotonic()))


def time_steps(timer: StepTimer, count: int, *, wait: float, compute: float) -> Window:
    """Runs ahead by one step, as the loop does; every batch and every computation takes so many seconds."""
    running, done_at = None, 0.0
    for _ in range(count):
        with timer.waiting_for_input():
            time.sleep(wait)
        done_at = max(done_at, time.monotonic()) + compute
        timer.step_started({"loss": Computation(done_at)})
        if running:
            running.block_until_ready()
            timer.step_completed()
        running = Computation(done_at)
    running.block_until_ready()
    timer.step_completed()
    return timer.take_window()


@pytest.mark.parametrize(
    ("wait", "compute", "share"),
    [(0.1, 0.0, 1.0), (0.15, 0.075, 0.5), (0.05, 0.15, 0.0)],  # the last hides behind the computation
)
def test_input_wait_is_the_time_without_work_for_the_devices(wait: float, compute: float, share: float) -> None:
    with StepTimer() as timer:
        window = time_steps(timer, 5, wait=wait, compute=compute)
    assert window.steps == 4  # the first is start-up
    assert window.seconds / window.steps == pytest.approx(max(wait, compute), rel=0.3)
    assert window.input_seconds / window.seconds == pytest.approx(share, abs=0.12)


def test_pause_counts_to_no_step() -> None:
    with StepTimer() as timer:
        time_steps(timer, 2, wait=0.0, compute=0.05)
        with timer.pause():
            time.sleep(0.3)
        window = time_steps(timer, 2, wait=0.0, compute=0.05)
    assert window.steps == 2 and 0.1 <= window.seconds < 0.3


class Device:
    def __init__(self, stats: dict[str, int] | None) -> None:
        self.memory_stats = lambda: stats


def test_memory_is_the_highest_peak_of_the_devices_that_tell_one(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = [{"peak_bytes_in_use": 2_000_000_000}, {"peak_bytes_in_use": 3_000_000_000}, {"bytes_in_use": 1}, None]
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(stats) for stats in peaks])
    figures = step_figures(Window(steps=4, seconds=2.0, input_seconds=0.5), batch_size=8)
    assert figures == {
        "step_seconds": 0.5,
        "input_wait_share": 0.25,
        "videos_per_second": 16.0,
        "device_memory_gb": 3.0,
    }


def one_start(workdir: Path, start: int, end: int, *, resume: bool = True) -> list[dict[str, float]]:
    """Logs steps after `start` to `end`, pausing after step 4 as to save it; returns the lines of performance.jsonl."""
    with StepTimer() as timer, RunLog(epath.Path(workdir), start, CONFIG, timer, resume=resume) as log:
        for step in range(start + 1, end + 1):
            with timer.waiting_for_input():
                pass
            timer.step_started({"loss": Computation(time.monotonic() + 0.01)})
            log.step(step, {"loss": 1.0})
            if step == 4:
                with log.pause(step):
                    pass
    return performance(workdir)


def performance(workdir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "performance.jsonl").read_text().splitlines()]


def let_time_pass(workdir: Path) -> None:
    lines = [line | {"time": line["time"] - NOBODY_RUNS} for line in performance(workdir)]
    (workdir / "performance.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_lost_steps_and_the_time_until_the_next_start_lower_goodput(tmp_path: Path) -> None:
    crashed = one_start(tmp_path, 0, 7)
    assert [line["step"] for line in crashed] == [0, 2, 4, 6]
    let_time_pass(tmp_path)
    resumed = one_start(tmp_path, 4, 9)
    assert [line["step"] for line in resumed] == [0, 2, 4, 4, 6, 8, 9]
    saved, restart, last = resumed[2], resumed[3], resumed[-1]
    assert restart["productive_seconds"] == saved["productive_seconds"] < crashed[-1]["productive_seconds"]
    assert restart["elapsed_seconds"] > crashed[-1]["elapsed_seconds"] + NOBODY_RUNS - 1
    assert restart["goodput"] < saved["goodput"] < 1
    assert 7 * 0.01 <= last["productive_seconds"] < last["elapsed_seconds"] - NOBODY_RUNS  # all but two first steps
    assert last["goodput"] == last["productive_seconds"] / last["elapsed_seconds"]


def test_account_begins_with_the_run_not_with_what_failed_before_it(tmp_path: Path) -> None:
    one_start(tmp_path, 0, 3)
    let_time_pass(tmp_path)
    assert one_start(tmp_path, 0, 3)[-1]["elapsed_seconds"] > NOBODY_RUNS - 1
    assert one_start(tmp_path, 0, 3, resume=False)[-1]["elapsed_seconds"] < NOBODY_RUNS


class SlowBatches(Batches):
    def __next__(self) -> Any:
        time.sleep(0.2)
        return super().__next__()


def run(workdir: Path, batches: Batches, **options: Any) -> None:
    train(MODEL, CONFIG, batches, workdir, devices=jax.devices()[:1], **options)


def trace_two_runs(slow: Path, quick: Path) -> None:
    share_train_step()
    for workdir, batches, steps in ((slow, SlowBatches(dies_at=7), (6, 7)), (quick, Batches(dies_at=5), (2, 3))):
        with pytest.raises(KeyboardInterrupt):
            run(workdir, batches, profile_steps=steps)


@pytest.fixture(scope="module")
def traced_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on slow data, traced from step 6 on, that dies in the last step of its trace; a quick one, past its trace.

    In a process of their own: where another test has loaded the TPU's compiler, jax's profiler looks for a TPU.
    """
    folders = tmp_path_factory.mktemp("slow [1]*?"), tmp_path_factory.mktemp("quick")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(trace_two_runs, *folders).result()
    return folders


@pytest.fixture(scope="module")
def crashed_run(traced_runs: tuple[Path, Path]) -> Path:
    return traced_runs[0]


def traced(workdir: Path) -> list[tuple[str, dict[str, Any]]]:
    """Name and figures of every event of the one trace there."""
    (file,) = (workdir / "tensorboard" / "plugins" / "profile").glob("*/*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(file)).planes
    return [(event.name, dict(event.stats)) for plane in planes for line in plane.lines for event in line.events]


def traced_steps(workdir: Path) -> list[int]:
    return sorted(figures["step_num"] for name, figures in traced(workdir) if name == "train")


def test_figures_are_in_the_file_and_in_tensorboard_but_not_among_the_metrics(crashed_run: Path) -> None:
    lines = performance(crashed_run)
    names = {"step_seconds", "input_wait_share", "videos_per_second", "goodput"}
    assert [line["step"] for line in lines if names <= line.keys()] == [2, 4, 5]  # 5: the trace begins after it
    assert not any("device_memory_gb" in line for line in lines)  # a CPU does not tell
    board = b"".join(file.read_bytes() for file in (crashed_run / "tensorboard").glob("events*"))
    assert all(f"performance/{name}".encode() in board for name in names)
    metrics = (crashed_run / "metrics.jsonl").read_text()
    assert "loss" in metrics and not any(name in metrics for name in names)


def test_slow_data_shows_as_input_wait(crashed_run: Path) -> None:
    line = performance(crashed_run)[2]  # steps 3 and 4
    assert line["step_seconds"] > 0.1 and 0.3 < line["input_wait_share"] < 1
    assert line["videos_per_second"] == pytest.approx(CONFIG.batch_size / line["step_seconds"])


def test_trace_holds_the_steps_asked_for_even_if_the_run_dies_in_it(crashed_run: Path) -> None:
    assert traced_steps(crashed_run) == [6, 7]


def test_run_that_goes_on_after_the_steps_to_trace_says_so_and_traces_nothing(
    crashed_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(crashed_run, Batches(), resume=True, profile_steps=(2, 3))
    assert "--profile-steps 2:3: no trace, as the run continues after step 4" in capsys.readouterr().err
    assert traced_steps(crashed_run) == [6, 7]
    assert [line["step"] for line in performance(crashed_run)] == [0, 2, 4, 4, 6, 8, 9]


def test_trace_has_all_of_its_steps_and_nothing_of_those_beside_them(traced_runs: tuple[Path, Path]) -> None:
    assert traced_steps(traced_runs[1]) == [2, 3]
    figures = [figures for _, figures in traced(traced_runs[1]) if figures.get("hlo_module") == "jit_train_step"]
    counts = Counter(figure["hlo_op"] for figure in figures).values()
    assert min(counts) == 2 and all(count % 2 == 0 for count in counts)  # what is in a loop counts more often


def test_trace_tells_of_the_input_and_of_no_python_calls(traced_runs: tuple[Path, Path]) -> None:
    names = Counter(name for name, _ in traced(traced_runs[1]))
    assert names["input"] == 2
    assert not [name for name in names if name.startswith("$")]  # as in "$loop.py:61 train"


@pytest.mark.parametrize("steps", [(0, 3), (3, 2), (8, 10), (10, 12)])
def test_steps_that_the_run_does_not_have_cannot_be_traced(tmp_path: Path, steps: tuple[int, int]) -> None:
    with pytest.raises(STGTError, match=rf"--profile-steps {steps[0]}:{steps[1]} is not within .* 1:9; give"):
        run(tmp_path / "run", Batches(), profile_steps=steps)
    assert not (tmp_path / "run").exists()
