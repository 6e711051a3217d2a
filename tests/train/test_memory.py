"""A training that does not fit is refused before it starts, with what would."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import pytest
from small import Batches, make_batch, small_model, small_training

from stgt_jax.config import MeshConfig, ModelConfig
from stgt_jax.errors import STGTError
from stgt_jax.mesh import make_mesh
from stgt_jax.models.stgt import STGT
from stgt_jax.train import memory
from stgt_jax.train.loop import train
from stgt_jax.train.memory import GIB, HeldBatches, Limits, Need, Plan, fitting_train_step

MODEL = small_model()
BATCHES = HeldBatches({name: (array.shape, array.dtype) for name, array in make_batch(0).items()}, 12, 2)


def compiled(plan: Plan, mesh: jax.sharding.Mesh) -> tuple[Any, Need]:
    """Stands for the compiler: weights and optimizer take 16 GiB, activations 4 GiB a clip, or 1 with remat."""
    clips = plan.train.batch_size / plan.train.accumulation_steps / mesh.shape["data"] / mesh.shape["fsdp"]
    assert plan.batches.shapes["video"][0][0] == plan.train.batch_size
    state = 16 * GIB // mesh.shape["fsdp"]
    return object(), Need(state, int(clips * (1 if plan.model.remat else 4) * GIB), plan.batches.number * GIB)


def refusal(device_gib: float, num_devices: int = 1, model: ModelConfig = MODEL, **options: Any) -> str:
    """What is said where each device has so much memory."""
    config = small_training(**options)
    mesh = make_mesh(config.mesh, jax.devices()[:num_devices])
    with pytest.raises(STGTError) as caught:
        fitting_train_step(STGT(model), config, mesh, BATCHES, Limits(device_gib * GIB, None))
    return str(caught.value)


@pytest.fixture
def given_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_compiled", compiled)


@pytest.mark.usefixtures("given_compiler")
def test_refusal_gives_the_need_and_three_options_with_theirs() -> None:
    assert refusal(40) == (
        "this training does not fit: it needs 48.00 GiB on each device (16.00 GiB for weights, optimizer and batch),"
        " and there are 40.00 GiB; it needs less with --model.remat true (24.00 GiB),"
        " --train.accumulation_steps 4 (24.00 GiB), --train.batch_size 3 (28.00 GiB)"
    )


@pytest.mark.usefixtures("given_compiler")
def test_options_are_those_that_the_plan_leaves() -> None:
    remat = dataclasses.replace(MODEL, remat=True)
    assert "with --train.accumulation_steps 4 (17.00 GiB), --train.mesh.fsdp 2 (12.00 GiB)" in refusal(17.5, 2, remat)
    one_clip = refusal(16.5, 2, remat, accumulation_steps=4)
    assert re.search(r"with --train.mesh.fsdp 2 \(9.00 GiB\)$", one_clip)


@pytest.mark.usefixtures("given_compiler")
def test_plan_that_no_option_makes_fit_is_told_so() -> None:
    assert "it needs less, but not one of these alone is enough, with --model.remat true" in refusal(10)


@pytest.mark.usefixtures("given_compiler")
def test_plan_that_fits_and_unknown_memory_are_not_refused() -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    for limits in (Limits(48 * GIB, None), Limits(None, None)):
        assert fitting_train_step(STGT(MODEL), small_training(), mesh, BATCHES, limits)


@pytest.mark.usefixtures("given_compiler")
def test_batches_that_wait_for_devices_are_fewer_without_worker_processes() -> None:
    large = dataclasses.replace(
        BATCHES, shapes={name: ((8, 2**24), dtype) for name, (_, dtype) in BATCHES.shapes.items()}
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(STGTError, match=r"needs 12.00 GiB on the host .* with --data.num_workers 0 \(2.00 GiB\)"):
        fitting_train_step(STGT(MODEL), small_training(), mesh, large, Limits(48 * GIB, 8 * GIB))


class TwoClips(Batches):
    def batch_shapes(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        return {name: ((2, *shape[1:]), dtype) for name, (shape, dtype) in super().batch_shapes().items()}


@pytest.mark.slow
def test_run_without_the_memory_is_refused_before_it_makes_a_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "host_memory", lambda: 2_000_000)
    with pytest.raises(STGTError, match=r"it needs [\d.]+ MiB on the host .* there are 1\.91 MiB; .* a smaller model$"):
        train(dataclasses.replace(MODEL, remat=True), small_training(batch_size=2), TwoClips(), tmp_path,
              devices=jax.devices()[:1])  # fmt: skip
    assert not list((tmp_path / "checkpoints").iterdir())


def test_memory_of_the_host_is_known_and_a_container_limits_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = memory.host_memory()
    assert whole and whole > GIB / 2
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_CGROUP_LIMITS", (str(limit),))
    limit.write_text("12345\n")
    assert memory.host_memory() == 12345
    limit.write_text("max\n")
    assert (memory.host_memory() or 0) >= whole
