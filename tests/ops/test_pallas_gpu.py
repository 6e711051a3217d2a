"""What only the GPU kernels do: chunks of the head dimension, weights of 16 bits, and their lowering without a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh
from test_kernels import forward_and_backward, make_arrays

from stgt_jax.ops.graph_attention import pallas_gpu
from stgt_jax.ops.graph_attention.implementation import Inputs


def test_the_smallest_weight_is_an_edge_in_16_bits() -> None:
    arrays = make_arrays(num_frames=1, patches=3, head_dim=4)
    value = arrays["value"].astype(jnp.bfloat16)
    weights = jnp.zeros_like(arrays["weights"]).at[:, 0, 1, 0, 2].set(2.0**-20)
    query, key = (arrays[name].astype(jnp.bfloat16) for name in ("query", "key"))
    out, _ = pallas_gpu.forward(Inputs(query, key, value, weights, arrays["dropout"], 0.0))
    np.testing.assert_array_equal(out[:, 0, 0], value[:, 0, 2])
    np.testing.assert_array_equal(out[:, 0, 1:], 0.0)


@pytest.mark.parametrize("head_dim", [4, 16, 24, 64, 80, 88, 112, 128])
def test_chunks_are_powers_of_two_that_cover_the_head(head_dim: int) -> None:
    chunks = pallas_gpu._chunks(head_dim)
    sizes = [chunk.stop - chunk.start for chunk in chunks]
    assert all(size >= 16 and size & (size - 1) == 0 for size in sizes)
    assert [chunk.start for chunk in chunks] == [0, *np.cumsum(sizes)[:-1]]
    assert 0 <= sum(sizes) - head_dim < 16


def test_what_has_no_tile_is_named() -> None:
    query = jax.ShapeDtypeStruct((1, 1, 4, 1, 88), jnp.float32)
    assert pallas_gpu.unfit(query) == ""
    assert "256" in pallas_gpu.unfit(query.update(shape=(1, 1, 4, 1, 256)))
    assert "float64" in pallas_gpu.unfit(query.update(dtype=np.float64))


@pytest.mark.parametrize("beyond", [0, 1])
def test_lowers_for_cuda_at_full_width(beyond: int) -> None:
    query = jax.ShapeDtypeStruct((2, 8, 256, 16, 88), jnp.bfloat16)
    key = query.update(shape=(2, 8 + 2 * beyond, *query.shape[2:]))
    weights = jax.ShapeDtypeStruct((2, 8, 3, 256, 256), jnp.float32)
    dropout = jax.ShapeDtypeStruct((5,), jnp.int32)
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        traced = forward_and_backward.trace(pallas_gpu, query, key, key, weights, dropout, query, dropout_rate=0.1)
        lowered = traced.lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("__gpu$xla.gpu.triton") == 3
