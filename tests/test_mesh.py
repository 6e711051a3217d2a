"""Meshes: their axes, those chosen for "auto", and fsdp axes that no parameter can be split by."""

import dataclasses
import logging
import types
from typing import Any

import jax
import pytest

from stgt_jax.config import GraphConfig, MeshConfig, ModelConfig, TrainConfig, VisionConfig, vit_g
from stgt_jax.errors import STGTError
from stgt_jax.mesh import STATE_SHARE, choose_mesh, make_mesh
from stgt_jax.models.stgt import STGT
from stgt_jax.sharding import bytes_held
from stgt_jax.train.state import state_shapes, workload

GB = 1e9
AUTO = MeshConfig(fsdp="auto", sequence="auto")
PAPER = STGT(vit_g())


def devices(count: int, per_process: int = 4) -> list[Any]:
    return [types.SimpleNamespace(process_index=i // per_process, platform="tpu") for i in range(count)]


def choose(count: int, batch: int, memory: float, mesh: MeshConfig = AUTO, model: STGT = PAPER) -> MeshConfig:
    return choose_mesh(mesh, workload(model, TrainConfig(batch_size=batch)), devices(count), memory)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (MeshConfig(), (8, 1, 1, 1)),
        (MeshConfig(data=2, fsdp=-1), (2, 4, 1, 1)),
        (MeshConfig(data=2, fsdp=2, tensor=2), (2, 2, 1, 2)),
        (MeshConfig(sequence=4), (2, 1, 4, 1)),
    ],
)
def test_mesh_takes_all_devices(config: MeshConfig, sizes: tuple[int, ...]) -> None:
    mesh = make_mesh(config)
    assert dict(mesh.shape) == dict(zip(("data", "fsdp", "sequence", "tensor"), sizes, strict=True))
    assert set(mesh.devices.flat) == set(jax.devices())


def test_mesh_of_one_device() -> None:
    assert make_mesh(MeshConfig(), jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    "config", [MeshConfig(data=3, fsdp=2), MeshConfig(fsdp=3), MeshConfig(data=1), MeshConfig(fsdp=16)]
)
def test_impossible_mesh_says_product_and_number_of_devices(config: MeshConfig) -> None:
    with pytest.raises(STGTError, match=r"= \d+ devices but there are 8") as error:
        make_mesh(config)
    assert "\n" not in str(error.value)


def test_clips_split_over_processes_are_refused() -> None:
    with pytest.raises(STGTError, match=r"sequence=2 x tensor=2 = 4 devices share each clip, but a process has 2"):
        make_mesh(MeshConfig(sequence=2, tensor=2), devices(8, per_process=2))


def test_parameters_are_copied_where_memory_allows() -> None:
    assert choose(256, 2048, 16 * GB) == MeshConfig(data=256)
    assert choose(1, 8, 80 * GB) == MeshConfig(data=1)


@pytest.mark.parametrize("memory", [8 * GB, 4 * GB, 2 * GB])
def test_parameters_are_split_over_the_fewest_devices_that_hold_them(memory: float) -> None:
    chosen = choose(64, 512, memory)
    shapes = state_shapes(PAPER, TrainConfig())

    def needed(fsdp: int) -> int:
        return bytes_held(shapes, {"fsdp": fsdp}) + bytes_held(shapes.params, {"fsdp": fsdp})

    assert chosen.data * chosen.fsdp == 64 and chosen.fsdp > 1
    assert needed(chosen.fsdp) <= STATE_SHARE * memory < needed(chosen.fsdp // 2)


def test_frames_are_split_where_there_are_more_devices_than_clips() -> None:
    assert choose(64, 32, 16 * GB) == MeshConfig(data=32, sequence=2)
    assert choose(64, 32, 16 * GB, MeshConfig(sequence="auto", tensor=2)) == MeshConfig(data=32, tensor=2)


def test_memory_is_asked_of_a_device_of_this_process() -> None:
    def told(limit: float) -> Any:
        return lambda: {"bytes_limit": limit}

    def refused() -> None:
        raise RuntimeError("a device of another process")

    mine = types.SimpleNamespace(process_index=jax.process_index(), memory_stats=told(6 * GB))
    others = [types.SimpleNamespace(process_index=jax.process_index() + 1, memory_stats=refused) for _ in range(7)]
    of_training = workload(PAPER, TrainConfig(batch_size=64))
    chosen = choose_mesh(AUTO, of_training, [*others, mine])
    assert chosen.fsdp == choose(8, 64, 6 * GB).fsdp > 1
    assert choose_mesh(AUTO, of_training, jax.devices()) == MeshConfig(data=8)  # CPUs


def test_parameters_are_split_within_a_slice_of_tpus() -> None:
    two_slices = [types.SimpleNamespace(process_index=i // 4, slice_index=i // 8) for i in range(16)]
    of_training = workload(PAPER, TrainConfig(batch_size=64))
    assert choose_mesh(AUTO, of_training, two_slices, 0.1 * GB) == MeshConfig(data=2, fsdp=8)  # too little for any


def test_what_is_asked_for_stays() -> None:
    assert choose(64, 512, 2 * GB, MeshConfig(data=8, fsdp="auto")) == MeshConfig(data=8, fsdp=8)
    assert choose(64, 512, 2 * GB, MeshConfig(tensor=4)) == MeshConfig(tensor=4)


def test_fsdp_that_divides_no_dimension_is_cut_and_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert choose(256, 2048, 16 * GB, MeshConfig(fsdp=256)) == MeshConfig(fsdp=128)  # and data=2, all that is left
    assert choose(512, 2048, 16 * GB, MeshConfig(data=2, fsdp=256)) == MeshConfig(data=4, fsdp=128)
    assert choose(256, 2048, 16 * GB, MeshConfig(fsdp=256, sequence="auto")) == MeshConfig(data=2, fsdp=128)
    assert "fsdp=256 divides no dimension of" in caplog.text and "1408, 1408)" in caplog.text
    assert "fsdp=128 devices and held 2 times" in caplog.text


@pytest.mark.parametrize(
    ("count", "mesh"),
    [(4, MeshConfig(fsdp=3)), (6, MeshConfig(fsdp=6, tensor=2)), (4, MeshConfig(fsdp=3, sequence="auto"))],
)
def test_fsdp_that_the_devices_do_not_divide_by_is_refused_not_cut(
    caplog: pytest.LogCaptureFixture, count: int, mesh: MeshConfig
) -> None:
    caplog.set_level(logging.INFO)
    odd = ModelConfig(vision=VisionConfig(width=44, num_heads=4, mlp_dim=44), graph=GraphConfig(num_heads=4))
    with pytest.raises(STGTError, match=f"fsdp={mesh.fsdp}.* devices but there are {count}"):
        make_mesh(choose(count, 48, 16 * GB, mesh, STGT(odd)), devices(count))
    assert "fsdp" not in caplog.text


def test_mesh_that_cannot_be_is_explained_by_its_axes() -> None:
    chosen = choose(6, 32, 16 * GB)  # 32 clips do not divide by 6 or 3 devices, nor 8 frames by 3
    with pytest.raises(STGTError, match="but there are 6") as error:
        make_mesh(dataclasses.replace(chosen, data=4), devices(6))
    assert "\n" not in str(error.value)
    with pytest.raises(STGTError, match="an axis is auto"):
        make_mesh(AUTO, devices(6))


def test_parameters_no_axis_divides_are_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    odd = ModelConfig(vision=VisionConfig(width=44, num_heads=4, mlp_dim=44), graph=GraphConfig(num_heads=4))
    of_training = workload(STGT(odd), TrainConfig(batch_size=32))
    assert choose_mesh(MeshConfig(tensor=8, fsdp="auto"), of_training, devices(16, 8), 16 * GB) == MeshConfig(
        data=2, tensor=8
    )
    assert "tensor=8 divides no dimension of 20 parameters, such as" in caplog.text
    assert choose(24, 48, 16 * GB, MeshConfig(fsdp=3), STGT(odd)) == MeshConfig(fsdp=1)
    assert "fsdp=3 divides no dimension of" in caplog.text
    assert choose(96, 96, 16 * GB, MeshConfig(fsdp=3, tensor=32), STGT(odd)) == MeshConfig(fsdp=1, tensor=32)
