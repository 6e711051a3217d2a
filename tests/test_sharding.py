"""Meshes, and the layout of batches and parameters on them."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from jax.sharding import PartitionSpec as P

from stgt_jax.config import MeshConfig, vit_g
from stgt_jax.errors import STGTError
from stgt_jax.models.stgt import STGT
from stgt_jax.sharding import make_mesh, param_shardings, shard_batch
from stgt_jax.train.state import abstract_params

CUBE = MeshConfig(data=2, fsdp=2, tensor=2)


def spec(name: str, *shape: int, mesh: MeshConfig = CUBE) -> P:
    tree = unflatten_dict({name: jax.ShapeDtypeStruct(shape, jnp.float32)}, sep="/")
    return jax.tree.leaves(param_shardings(tree, make_mesh(mesh)))[0].spec


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (MeshConfig(), (8, 1, 1, 1)),
        (MeshConfig(data=2, fsdp=-1), (2, 4, 1, 1)),
        (CUBE, (2, 2, 1, 2)),
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
    devices: list[Any] = [types.SimpleNamespace(process_index=i // 2) for i in range(8)]
    with pytest.raises(STGTError, match=r"sequence=2 x tensor=2 = 4 devices share each clip, but a process has 2"):
        make_mesh(MeshConfig(sequence=2, tensor=2), devices)


def test_batch_is_split_over_data_and_fsdp() -> None:
    batch = {"input_ids": np.arange(24, dtype=np.int32).reshape(8, 3)}
    array = shard_batch(batch, make_mesh(CUBE))["input_ids"]
    np.testing.assert_array_equal(array, batch["input_ids"])
    assert {shard.data.shape for shard in array.addressable_shards} == {(2, 3)}


def test_frames_are_split_over_sequence() -> None:
    video = np.arange(48, dtype=np.uint8).reshape(4, 4, 1, 1, 3)
    array = shard_batch({"video": video}, make_mesh(MeshConfig(data=2, sequence=4)))["video"]
    np.testing.assert_array_equal(array, video)
    assert {shard.data.shape for shard in array.addressable_shards} == {(2, 1, 1, 1, 3)}


def test_products_are_split_by_columns_then_rows() -> None:
    assert spec("vision/blocks/mlp/up/kernel", 39, 64, 256) == P(None, "fsdp", "tensor")
    assert spec("vision/blocks/mlp/down/kernel", 39, 256, 64) == P(None, "tensor", "fsdp")
    assert spec("text_proj/kernel", 64, 32) == P("fsdp", "tensor")


def test_layer_axis_is_never_split() -> None:
    assert spec("vision/blocks/mlp/up/kernel", 8, 33, 35) == P(None, None, None)


def test_dimension_that_does_not_divide_gives_way_to_the_next() -> None:
    assert spec("qformer/word_embed/embedding", 30523, 768) == P(None, ("tensor", "fsdp"))
    assert spec("a/kernel", 63, 64, mesh=MeshConfig(data=2, fsdp=4)) == P(None, "fsdp")


def test_small_and_unruled_leaves_are_replicated() -> None:
    assert spec("itm_head/kernel", 8, 2) == P()
    assert spec("vision/blocks/norm1/scale", 39, 4096) == P()
    assert spec("temperature") == P()


def test_published_model_is_split_almost_whole() -> None:
    def bytes_held(leaf: Any) -> int:
        return int(np.prod(leaf.sharding.shard_shape(leaf.shape)))

    params = jax.tree.leaves(abstract_params(STGT(vit_g()), make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))))
    assert sum(map(bytes_held, params)) < 1.02 * sum(leaf.size for leaf in params) / 8
