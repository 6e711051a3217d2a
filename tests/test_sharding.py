"""The layout of batches and parameters on a mesh."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import PartitionSpec as P

from stgt_jax.config import MeshConfig, vit_g
from stgt_jax.mesh import make_mesh
from stgt_jax.models.stgt import STGT
from stgt_jax.sharding import param_shardings, shard_batch
from stgt_jax.train.state import abstract_params

CUBE = MeshConfig(data=2, fsdp=2, tensor=2)


def spec(name: str, *shape: int, mesh: MeshConfig = CUBE) -> P:
    tree = unflatten_dict({name: jax.ShapeDtypeStruct(shape, jnp.float32)}, sep="/")
    return jax.tree.leaves(param_shardings(tree, make_mesh(mesh)))[0].spec


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
