"""Real processes that train as one, on CPUs that may pose as two devices each: alike, resumable, stopped and killed."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from models_for_tests import write_random_run
from processes import environment, free_port
from recipe_words import recipe_with
from small_recipe import SMALL

from stgt_jax.run_folder import read_run
from stgt_jax.train.checkpoint import load_params

pytestmark = pytest.mark.slow
STEPS, FIRST, HEARTBEAT = 12, 4, 8  # FIRST: the step of a run's first checkpoint
STOPPED_WITHIN = 30  # seconds from SIGTERM to the end of all; a step takes 0.4 s, a checkpoint 1 s
KILLED_WITHIN = HEARTBEAT + 20  # seconds from a process's death to the end of all others
# Without the graph, whose split over a mesh tests/ops covers, and with a frozen ViT it compiles in half the time.
OPTIONS = [
    *SMALL, f"--num_steps={STEPS}", f"--checkpoint_every={FIRST}", "--peak_learning_rate=1e-3", "--graph.dropout=0",
    "--qformer.dropout=0", "--graph.variant=none", "--vision.freeze=true",
]  # fmt: skip
MODEL = recipe_with("moving_shapes_stage1", OPTIONS).model


class Run:
    """The processes of one `stgt pretrain`, each with a file of what it says."""

    def __init__(self, shards, encoder, workdir, *options, processes=2, devices=2, paced=False):
        said = Path(f"{workdir}_said")
        said.mkdir(exist_ok=True)
        self.workdir, self.files, self.processes = workdir, [], []
        code = (
            [str(Path(__file__).with_name("paced_stgt.py"))]
            if paced
            else ["-c", "from experiments.commands.main import main; exit(main())"]
        )
        command = [sys.executable, *code, "pretrain", "moving_shapes_stage1", "--workdir", str(workdir)]
        command += ["--data.shards", str(shards), "--weights.vision", str(encoder), *OPTIONS, *options]
        if processes > 1:
            command += ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", str(processes)]
            command += ["--heartbeat-timeout", str(HEARTBEAT)]
        for index in range(processes):
            self.files.append(said / f"{index}.txt")
            own = ["--process-id", str(index)] if processes > 1 else []
            with self.files[-1].open("w") as file:
                self.processes.append(
                    subprocess.Popen([*command, *own], env=environment(devices), stdout=file, stderr=file)
                )

    def reaches(self, step, within=300):
        wait_until(lambda: max(losses(self.workdir), default=0) >= step or self.ended(), within, self)
        assert not self.ended(), self.said()

    def ended(self):
        return all(process.poll() is not None for process in self.processes)

    def ends(self, within=300):
        """The exit statuses, in order."""
        wait_until(self.ended, within, self)
        return [process.returncode for process in self.processes]

    def said(self):
        return "\n".join(file.read_text() for file in self.files)

    def last_words(self, index):
        return self.files[index].read_text().splitlines()[-1]


def wait_until(condition, within, run):
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within} s; the processes said:\n{run.said()}")
        time.sleep(0.05)


def lines(workdir):
    file = workdir / "metrics.jsonl"
    whole = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in whole if line.endswith("\n")]


def losses(workdir):
    return {line["step"]: line["loss"] for line in lines(workdir) if "loss" in line}


def checkpoints(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


def assert_same_figures(workdir, reference):
    """Every step once, with the losses of the run by which `reference` was left, and its validation."""
    own, others = lines(workdir), lines(reference)
    assert [sorted(line) for line in own] == [sorted(line) for line in others]
    for line, other in zip(own, others, strict=True):
        assert line == pytest.approx(other, rel=2e-4, abs=2e-5)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The folder of a run whose vision encoder all others take."""
    return write_random_run(tmp_path_factory.mktemp("encoder"), MODEL, seed=1)


@pytest.fixture(scope="module")
def start(shards, encoder):
    """Starts a `Run` on the shards; none outlives the tests."""
    runs = []

    def run(workdir, *options, **kind):
        runs.append(Run(shards, encoder, workdir, *options, **kind))
        return runs[-1]

    yield run
    for process in [process for run in runs for process in run.processes]:
        process.kill()


@pytest.fixture(scope="module")
def reference(start, tmp_path_factory):
    """The folder of a run of one process on one device that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    run = start(workdir, processes=1, devices=1)
    assert run.ends() == [0], run.said()
    return workdir


def as_of_first_checkpoint(workdir):
    """Leaves in a run's folder what is there when a crash follows its first checkpoint."""
    for step in checkpoints(workdir)[1:]:
        shutil.rmtree(workdir / "checkpoints" / str(step))
    kept = [json.dumps(line) + "\n" for line in lines(workdir) if line["step"] <= FIRST + 1]
    (workdir / "metrics.jsonl").write_text("".join(kept))


@pytest.fixture(scope="module")
def stopped(start, reference, tmp_path_factory):
    """A run that one process began and two go on with, one of which is sent SIGTERM; the seconds they take to end."""
    workdir = shutil.copytree(reference, tmp_path_factory.mktemp("stopped") / "run")
    as_of_first_checkpoint(workdir)
    run = start(workdir, "--resume", paced=True)
    run.reaches(FIRST + 2)
    run.processes[1].send_signal(signal.SIGTERM)
    begin = time.monotonic()
    run.ends()
    return run, time.monotonic() - begin


def test_frozen_encoder_keeps_the_weights_that_were_given(reference, encoder):
    trained = load_params(reference, read_run(reference).model)["vision"]
    jax.tree.map(np.testing.assert_array_equal, trained, load_params(encoder, MODEL)["vision"])


def test_sigterm_to_one_stops_all_at_one_step_with_a_checkpoint(stopped):
    run, seconds = stopped
    assert [process.returncode for process in run.processes] == [0, 0], run.said()
    assert seconds < STOPPED_WITHIN
    step = checkpoints(run.workdir)[-1]
    assert FIRST < max(losses(run.workdir)) == step < STEPS
    for words in (run.last_words(0), run.last_words(1)):
        assert "stopped as asked, with" in words and f"checkpoints/{step} saved" in words


@pytest.fixture
def copy(stopped, tmp_path):
    """What that run left, to continue from."""
    return shutil.copytree(stopped[0].workdir, tmp_path / "run")


def test_same_command_continues_a_killed_one_ends_the_other_and_four_finish(start, copy, reference):
    step = checkpoints(copy)[-1]
    run = start(copy, paced=True)
    run.reaches(step + 1)
    run.processes[1].kill()
    assert run.ends(within=KILLED_WITHIN) == [1, -signal.SIGKILL]
    assert f"was asked to stop after step {step}; continuing from there" in run.said()
    assert run.last_words(0).startswith("stgt: error: another process of this run has ended")

    run = start(copy, "--resume", processes=4, devices=1)
    assert run.ends() == [0] * 4, run.said()
    assert_same_figures(copy, reference)


def test_one_process_on_another_mesh_finishes_what_two_began(start, copy, reference):
    assert json.loads((copy / "checkpoints" / str(checkpoints(copy)[-1]) / "loader" / "metadata").read_text())
    run = start(copy, "--mesh.fsdp=2", processes=1)
    assert run.ends() == [0], run.said()
    assert_same_figures(copy, reference)


def test_processes_evaluate_together(run_stgt, shards, trained_run, tmp_path):
    words = ["eval", "retrieval", "--checkpoint", str(trained_run), "--shards", str(shards), "--split", "train"]
    words += ["--k-test", "4", "--encode-batch-size", "4"]
    done = run_stgt(*words, "--results", tmp_path / "alone.json")
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-c", "from experiments.commands.main import main; exit(main())", *words]
    command += ["--results", str(tmp_path / "together.json"), "--coordinator", f"127.0.0.1:{free_port()}"]
    together = [
        subprocess.Popen([*command, "--num-processes", "2", "--process-id", str(number)], env=environment(2),
                         stdout=subprocess.PIPE, text=True)
        for number in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in together]
    assert [process.returncode for process in together] == [0, 0]
    assert "R@1" in said[0] and "R@1" not in said[1]
    alone, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("alone", "together"))
    assert alone["weights_fingerprint"] == other["weights_fingerprint"]
    for direction, queries in alone["queries"].items():
        for one, two in zip(queries, other["queries"][direction], strict=True):
            assert one.keys() == two.keys() and one["video"] == two["video"]
            assert one.get("similarity", 0.0) == pytest.approx(two.get("similarity", 0.0), abs=1e-5)
