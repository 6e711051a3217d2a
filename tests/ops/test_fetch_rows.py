"""Rows fetched over a mesh: those of plain indexing, gradients too, and never all of them on a device."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stgt_jax.config import MeshConfig
from stgt_jax.mesh import make_mesh
from stgt_jax.ops.fetch_rows import fetch_rows

ROWS = {
    "each_another": np.roll(np.arange(16), 5),
    "some_often": np.array([3, 3, 3, 3, 9, 15, 0, 1, 2, 3, 3, 5, 3, 7, 8, 3]),
    "all_the_same": np.full(16, 6),
}
BY_CLIP = P(("data", "fsdp"))


@functools.partial(jax.jit, static_argnames="mesh")
def fetch(x: jax.Array, rows: jax.Array, weights: jax.Array, mesh: Mesh) -> Any:
    """(x[rows], the gradient of their weighted sum)."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        y, backward = jax.vjp(lambda x: fetch_rows(x, rows), x)
        return y, backward(weights)[0]


@pytest.fixture(scope="module")
def arrays() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(16, 3, 2)), jnp.float32), jnp.asarray(rng.normal(size=(16, 3, 2)), jnp.float32)


@pytest.mark.parametrize("axes", [MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)], ids=["data", "cube"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_rows_and_gradients_are_those_of_indexing(arrays, axes, rows) -> None:
    x, weights = arrays
    mesh = make_mesh(axes)
    placed = (jax.device_put(array, NamedSharding(mesh, BY_CLIP)) for array in (x, rows, weights))
    y, gradient = fetch(*placed, mesh)
    np.testing.assert_array_equal(y, x[rows])
    chex.assert_trees_all_close(gradient, jax.vjp(lambda x: x[rows], x)[1](weights)[0], rtol=1e-6, atol=1e-6)


def test_no_device_holds_all_rows() -> None:
    mesh = make_mesh(MeshConfig())
    x, rows = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, BY_CLIP))
        for shape, dtype in (((64, 1024), jnp.float32), ((64,), jnp.int32))
    )
    program = fetch.lower(x, rows, x, mesh).compile().as_text()
    assert "f32[32,1024]" in program and "f32[64,1024]" not in program  # the four devices of a line, not all eight


def test_without_a_mesh_it_is_indexing(arrays) -> None:
    np.testing.assert_array_equal(fetch_rows(arrays[0], jnp.array([4, 4, 1])), arrays[0][jnp.array([4, 4, 1])])
