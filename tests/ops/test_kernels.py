"""Both kernels, interpreted, against plain XLA: the contract of an implementation, as over_mesh uses it as well."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stgt_jax.ops.graph_attention import banded, pallas_gpu, pallas_tpu
from stgt_jax.ops.graph_attention.dropout import make_key
from stgt_jax.ops.graph_attention.graph import banded_adjacency
from stgt_jax.ops.graph_attention.implementation import Inputs

pytestmark = pytest.mark.slow
KERNELS = [pytest.param(module, id=module.__name__.rpartition(".")[2]) for module in (pallas_tpu, pallas_gpu)]


def make_arrays(num_frames: int, patches: int, head_dim: int, beyond: int = 0, sim_threshold: float = 0.1) -> dict:
    """What `forward_and_backward` takes."""
    keys = jax.random.split(jax.random.key(0), 5)
    shape = (2, num_frames, patches, 2, head_dim)
    with_neighbours = (2, num_frames + 2 * beyond, *shape[2:])
    query, d_out = (jax.random.normal(key, shape) for key in keys[:2])
    key, value = (jax.random.normal(key, with_neighbours) for key in keys[2:4])
    nodes = jax.random.normal(keys[4], (*with_neighbours[:3], 8)).at[:, :, 1].set(0.0)  # one without an edge
    weights = banded_adjacency(nodes, num_frames=num_frames, sim_threshold=sim_threshold)
    dropout = make_key(jax.random.key(1)).at[2:].set(jnp.array([3, 1, 40]))
    return {"query": query, "key": key, "value": value, "weights": weights, "dropout": dropout, "d_out": d_out}


@functools.partial(jax.jit, static_argnames=("module", "dropout_rate"))
def forward_and_backward(module, query, key, value, weights, dropout, d_out, dropout_rate=0.0):
    inputs = Inputs(query, key, value, weights, dropout, dropout_rate)
    output = module.forward(inputs)
    return {**output._asdict(), "grads": module.backward(inputs, output, d_out)}


def assert_same(left: dict, right: dict, tolerance: float) -> None:
    for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        assert x.shape == y.shape
        assert np.linalg.norm(x - y) <= tolerance * np.linalg.norm(y)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("num_frames", "patches", "head_dim", "sim_threshold", "dropout_rate"),
    [
        (1, 3, 4, 0.1, 0.0),
        (2, 20, 24, -1.0, 0.3),
        (3, 7, 88, 0.1, 0.0),  # chunks of 64 and 32
        (4, 40, 112, 0.1, 0.3),  # chunks of 64, 32 and 16; two tiles a frame on GPUs, and padding
        (2, 130, 8, 0.1, 0.3),  # two tiles a frame on TPUs, and padding
    ],
)
def test_equals_banded_with_gradients(kernel, num_frames, patches, head_dim, sim_threshold, dropout_rate) -> None:
    arrays = make_arrays(num_frames, patches, head_dim, sim_threshold=sim_threshold)
    results = [forward_and_backward(module, **arrays, dropout_rate=dropout_rate) for module in (kernel, banded)]
    assert_same(*results, tolerance=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("num_frames", [1, 3])
def test_frames_beyond_the_ends_are_seen_and_get_gradients(kernel, num_frames: int) -> None:
    arrays = make_arrays(num_frames, patches=20, head_dim=24, beyond=1)
    results = [forward_and_backward(module, **arrays, dropout_rate=0.3) for module in (kernel, banded)]
    assert_same(*results, tolerance=1e-5)
    _, d_key, d_value = results[0]["grads"]
    for ends in (d_key[:, [0, -1]], d_value[:, [0, -1]]):
        assert np.abs(ends).max(axis=(0, 2, 3, 4)).min() > 1e-3


@pytest.mark.parametrize(
    ("kernel", "dtype"), [(pallas_gpu, jnp.bfloat16), (pallas_gpu, jnp.float16), (pallas_tpu, jnp.bfloat16)]
)
def test_16_bits_stay_near_float32(kernel, dtype: jnp.dtype) -> None:
    arrays = make_arrays(num_frames=3, patches=7, head_dim=88)
    exact = forward_and_backward(kernel, **arrays)
    floats = {name: arrays[name].astype(dtype) for name in ("query", "key", "value", "d_out")}
    rounded = forward_and_backward(kernel, **{**arrays, **floats})
    chex.assert_type([rounded["out"], *rounded["grads"]], dtype)
    assert_same(rounded, exact, tolerance=8 * float(jnp.finfo(dtype).eps))
