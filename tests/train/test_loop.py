"""Whole runs: their logs and checkpoints, going on after a crash, and how they stop."""

import dataclasses
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from small import Batches, small_model, small_training

from stgt_jax.config import MeshConfig, TrainConfig
from stgt_jax.errors import Preempted, STGTError
from stgt_jax.mesh import make_mesh
from stgt_jax.models.stgt import STGT
from stgt_jax.run_folder import read_run
from stgt_jax.sharding import shard_batch
from stgt_jax.train.checkpoint import load_params
from stgt_jax.train.loop import train
from stgt_jax.train.loss_watch import LossWatch
from stgt_jax.train.state import init_state
from stgt_jax.train.step import make_train_step

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


def anomalies(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "anomalies.jsonl").read_text().splitlines()]


def reject(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_batch_whose_loss_is_not_finite_is_named_and_the_log_stays_json(tmp_path: Path) -> None:
    with pytest.raises(STGTError, match=rf"loss is nan at step 3 \(its batch: {tmp_path}/anomalies.jsonl\)"):
        one_run(tmp_path, Batches(poisoned=3))
    assert anomalies(tmp_path) == [{"step": 3, "what": "loss is nan", "loss": None, "batch": {"batch": 3}}]
    for file in tmp_path.glob("*.jsonl"):
        for line in file.read_text().splitlines():
            json.loads(line, parse_constant=reject)


def test_step_that_is_skipped_changes_nothing_and_the_run_goes_on(
    whole_run: tuple[Path, dict[str, float]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    skipping = dataclasses.replace(CONFIG, on_nonfinite="skip", max_skipped_steps=1)
    one_run(tmp_path / "sound", Batches(), skipping)
    sound, whole = lines(tmp_path / "sound"), lines(whole_run[0])
    assert [{n: x for n, x in line.items() if n != "skipped"} for line in sound] == whole
    assert {line["skipped"] for line in sound if "loss" in line} == {0}

    poisoned = tmp_path / "poisoned"
    with pytest.raises(KeyboardInterrupt):
        one_run(poisoned, Batches(poisoned=3, dies_at=6), skipping)
    assert "loss is nan at step 3: skipped, 1 of at most 1" in caplog.text
    one_run(poisoned, Batches(), skipping, resume=True)
    assert [line["step"] for line in lines(poisoned) if line.get("skipped")] == [3]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_params(poisoned, MODEL)))
    assert len(anomalies(poisoned)) == 1

    again = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        one_run(again, Batches(poisoned=3, dies_at=5), skipping)
    with pytest.raises(
        STGTError, match=r"loss is nan at step 5, after train\.max_skipped_steps=1 steps that were skip"
    ):
        one_run(again, Batches(poisoned=5), skipping, resume=True)


def test_skipped_step_leaves_weights_and_optimizer_to_the_bit() -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    skipping = dataclasses.replace(CONFIG, on_nonfinite="skip")
    step, state = make_train_step(STGT(MODEL), skipping, mesh), init_state(STGT(MODEL), skipping, mesh)
    batches = Batches(poisoned=2)
    state, _ = step(state, shard_batch(next(batches), mesh))
    before = jax.tree.map(np.array, (state.params, state.opt_state))
    state, metrics = step(state, shard_batch(next(batches), mesh))
    assert float(metrics["skipped"]) == 1 and not np.isfinite(float(metrics["loss"]))
    assert int(state.step) == 2
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state), before)


def test_infinite_weight_ends_the_run_and_is_never_saved(tmp_path: Path) -> None:
    def broken(mesh: Any) -> Any:
        params = init_state(STGT(MODEL), CONFIG, mesh).params
        return {**params, "temperature": params["temperature"] + np.inf}

    with pytest.raises(STGTError, match="the weights are not finite after step 4"):
        one_run(tmp_path, Batches(), initial_params=broken)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_sudden_rise_of_the_loss_is_logged_with_its_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = LossWatch(epath.Path(tmp_path), 0, CONFIG)
    rng = np.random.default_rng(0)
    for step in range(1, 60):
        values = {"loss": 2.0 + 0.1 * rng.normal() + 5.0 * (step == 40), "grad_norm": 1.0}
        assert watch.check(step, values, lambda step=step: {"shards/train": [step]}) == ""
    watch.close()
    (line,) = anomalies(tmp_path)
    assert (line["step"], line["what"], line["batch"]) == (40, "loss rises", {"shards/train": [40]})
    assert (
        "at step 40; the mean of the 39 steps before is" in caplog.text
        and str(tmp_path / "anomalies.jsonl") in caplog.text
    )


def out_of_memory(*_: Any) -> None:
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1.50GiB.")


def test_memory_of_a_device_that_runs_out_is_one_line_with_the_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(STGTError, match=r"out of memory in validation \(it asked for 1\.50GiB more\); .*eval_every 0"):
        train(MODEL, dataclasses.replace(CONFIG, eval_every=1), Batches(), tmp_path / "a", evaluate=out_of_memory,
              devices=jax.devices()[:1])  # fmt: skip
    with pytest.raises(STGTError, match=r"out of memory in making the first state .*mesh\.fsdp"):
        one_run(tmp_path / "b", Batches(), initial_params=out_of_memory)
    monkeypatch.setattr("stgt_jax.train.loop.fitting_train_step", lambda *_: out_of_memory)
    with pytest.raises(STGTError, match=r"out of memory in a training step .*--train\.accumulation_steps"):
        one_run(tmp_path / "c", Batches())


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGHUP, Preempted)])
def test_ctrl_c_and_a_lost_terminal_save_the_step_and_the_same_call_goes_on(
    whole_run: tuple[Path, dict[str, float]], tmp_path: Path, number: int, kind: type[BaseException]
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(kind, match=rf"stopped as asked, with {tmp_path}/checkpoints/3 saved"):
        one_run(tmp_path, Batches(stops_at=3, signal_number=number))
    assert signal.getsignal(number) is before
    assert one_run(tmp_path, Batches()) == whole_run[1]


def test_second_interrupt_in_a_notebook_spares_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Impatient(Batches):
        def __next__(self) -> dict[str, np.ndarray]:
            os.kill(os.getpid(), signal.SIGINT)
            return super().__next__()

    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        one_run(tmp_path, Impatient(stops_at=1, signal_number=signal.SIGINT))
    assert not list((tmp_path / "checkpoints").iterdir())


def test_nan_before_any_checkpoint_says_so_and_resume_starts_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(STGTError, match=r"loss is nan at step 1 .*; no checkpoint was saved before"):
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
