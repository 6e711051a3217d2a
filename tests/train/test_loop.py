"""Whole runs: their logs and checkpoints, going on after a crash, and how they stop."""

import dataclasses
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from small import Batches, small_model, small_training

from stgt_jax.config import TrainConfig
from stgt_jax.errors import Preempted, STGTError
from stgt_jax.run_folder import read_run
from stgt_jax.train.checkpoint import load_params
from stgt_jax.train.loop import train

pytestmark = pytest.mark.slow
MODEL = small_model()  # with dropout: the random numbers must go on too
CONFIG = small_training(num_steps=9, checkpoint_every=4, eval_every=8, keep_last=1, log_every=2)


def one_run(workdir: Path, batches: Batches, config: TrainConfig = CONFIG, **options: Any) -> dict[str, float]:
    def evaluate(params: Any) -> dict[str, float]:
        return {"t2v_r1": -float(params["temperature"])}

    return train(MODEL, config, batches, workdir, evaluate=evaluate, devices=jax.devices()[:1], **options)


def lines(workdir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    workdir = tmp_path_factory.mktemp("whole [1]*?")  # any name will do
    return workdir, one_run(workdir, Batches())


@pytest.fixture(scope="module")
def crashed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run cut off in step 8, when step 4 was saved and step 6 logged."""
    workdir = tmp_path_factory.mktemp("crashed")
    with pytest.raises(KeyboardInterrupt):
        one_run(workdir, Batches(dies_at=8))
    return workdir


def test_every_step_and_validation_is_logged(whole_run: tuple[Path, dict[str, float]]) -> None:
    workdir, final = whole_run
    assert [line["step"] for line in lines(workdir) if "loss" in line] == list(range(1, 10))
    assert [line["step"] for line in lines(workdir) if "validation/t2v_r1" in line] == [8, 9]
    assert final["loss"] == [line["loss"] for line in lines(workdir) if "loss" in line][-1]
    assert {"validation/t2v_r1", "learning_rate", "grad_norm", "accuracy_t2v"} <= final.keys()
    assert list((workdir / "tensorboard").iterdir())


def test_last_and_best_checkpoints_and_config_are_kept(whole_run: tuple[Path, dict[str, float]]) -> None:
    workdir, _ = whole_run
    recall = {line["step"]: line["validation/t2v_r1"] for line in lines(workdir) if "validation/t2v_r1" in line}
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    assert kept == {9, max(recall, key=recall.get)}
    assert read_run(workdir).model == MODEL


def test_saved_parameters_are_those_validated(whole_run: tuple[Path, dict[str, float]]) -> None:
    workdir, final = whole_run
    assert float(load_params(workdir, MODEL)["temperature"]) == -final["validation/t2v_r1"]


def test_resumed_run_is_the_uninterrupted_one_to_the_bit(
    whole_run: tuple[Path, dict[str, float]], crashed_run: Path
) -> None:
    workdir, final = whole_run
    assert max(line["step"] for line in lines(crashed_run)) == 6
    assert [path.name for path in (crashed_run / "checkpoints").iterdir()] == ["4"]
    assert one_run(crashed_run, Batches(), resume=True) == final
    assert lines(crashed_run) == lines(workdir)
    jax.tree.map(np.testing.assert_array_equal, load_params(crashed_run, MODEL), load_params(workdir, MODEL))


def test_sigterm_saves_the_step_it_came_in_and_the_same_call_goes_on(
    whole_run: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match=rf"stopped as asked, with {tmp_path}/checkpoints/3 saved"):
        one_run(tmp_path, Batches(stops_at=3))
    assert signal.getsignal(signal.SIGTERM) is before
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert one_run(tmp_path, Batches()) == whole_run[1]
    assert lines(tmp_path) == lines(whole_run[0])


def test_resuming_a_finished_run_changes_nothing(whole_run: tuple[Path, dict[str, float]]) -> None:
    workdir, final = whole_run
    before, written = lines(workdir), (workdir / "config.json").stat().st_mtime_ns
    assert one_run(workdir, Batches(), resume=True) == final
    assert lines(workdir) == before
    assert (workdir / "config.json").stat().st_mtime_ns == written


def test_run_goes_on_with_other_options_only_if_allowed(whole_run: tuple[Path, dict[str, float]]) -> None:
    workdir, final = whole_run
    before, changed = read_run(workdir).content, dataclasses.replace(CONFIG, seed=3)
    with pytest.raises(STGTError, match=r"other options: train\.seed was 0, now 3; give the same, or --allow-changes"):
        one_run(workdir, Batches(), changed, resume=True)
    assert read_run(workdir).content == before
    assert one_run(workdir, Batches(), changed, resume=True, allow_changes=True) == final
    assert read_run(workdir).content == before | {"train": before["train"] | {"seed": 3}}
    assert one_run(workdir, Batches(), resume=True, allow_changes=True) == final
    with pytest.raises(STGTError, match=r"train\.num_steps=8 is less than the 9 steps"):
        one_run(workdir, Batches(), dataclasses.replace(CONFIG, num_steps=8), resume=True, allow_changes=True)


def test_data_start_anew_only_if_changes_are_allowed(
    whole_run: tuple[Path, dict[str, float]], caplog: pytest.LogCaptureFixture
) -> None:
    class OtherData(Batches):
        def set_state(self, state: bytes) -> None:
            raise STGTError(f"no place {state!r} in these data")

    with pytest.raises(STGTError, match="no place b'9' in these data"):
        one_run(whole_run[0], OtherData(), resume=True)
    assert one_run(whole_run[0], OtherData(), resume=True, allow_changes=True) == whole_run[1]
    assert "the training data start from the beginning: no place b'9'" in caplog.text


def test_second_run_in_a_folder_is_refused_while_the_first_one_trains(tmp_path: Path) -> None:
    class Intruded(Batches):
        def __next__(self) -> dict[str, np.ndarray]:
            with pytest.raises(STGTError, match=rf"a run is in progress there \(process {os.getpid()} on") as error:
                one_run(tmp_path, Batches(), resume=True)
            assert socket.gethostname() in str(error.value) and "\n" not in str(error.value)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one_run(tmp_path, Intruded())


def test_workdir_in_use_needs_resume(
    whole_run: tuple[Path, dict[str, float]], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(STGTError, match="use --resume or another workdir"):
        one_run(whole_run[0], Batches())
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("step", [6, 8])  # 8 is a step to validate and save
def test_nan_stops_with_step_and_last_good_checkpoint(tmp_path: Path, step: int) -> None:
    with pytest.raises(STGTError, match=f"loss is nan at step {step}") as error:
        one_run(tmp_path, Batches(poisoned=step))
    good = tmp_path / "checkpoints" / "4"
    assert f"last good checkpoint: {good};" in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in good.parent.iterdir()] == ["4"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_params(good, MODEL)))


def test_nan_before_any_checkpoint_says_so_and_resume_starts_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(STGTError, match="loss is nan at step 1; no checkpoint was saved before"):
        one_run(tmp_path, Batches(poisoned=1), resume=True)
    assert "no checkpoint to resume from; starting from the beginning" in capsys.readouterr().err


def test_data_that_ends_is_an_error(tmp_path: Path) -> None:
    class Empty(Batches):
        def __next__(self) -> dict[str, np.ndarray]:
            raise StopIteration

    with pytest.raises(STGTError, match="ended before step 1"):
        one_run(tmp_path, Empty())


def test_second_stage_starts_from_the_first_ones_weights(
    whole_run: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    first, _ = whole_run
    with pytest.raises(KeyboardInterrupt):
        one_run(tmp_path, Batches(dies_at=3), initial_params=lambda mesh: load_params(first, MODEL, mesh))
    assert lines(tmp_path)[0]["temperature"] == float(load_params(first, MODEL)["temperature"])
