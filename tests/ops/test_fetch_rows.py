"""Rows fetched over a mesh: those of plain indexing, gradients too, whether gathered or sent."""

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
from stgt_jax.ops.fetch_rows import fetch_rows
from stgt_jax.sharding import make_mesh

ROWS = {
    "each_another": np.roll(np.arange(16), 5),
    "some_often": np.array([3, 3, 3, 3, 9, 15, 0, 1, 2, 3, 3, 5, 3, 7, 8, 3]),
    "all_the_same": np.full(16, 6),
}


def ragged_all_to_all(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name):
    """What `jax.lax.ragged_all_to_all` is documented to do, for slices of at most one row; CPUs have not got it."""
    gathered = [jax.lax.all_gather(x, axis_name) for x in (operand, input_offsets, send_sizes, output_offsets)]
    me, devices = jax.lax.axis_index(axis_name), gathered[0].shape[0]
    operands, starts, sizes, places = (x if x.ndim == operand.ndim + 1 else x.reshape(devices, devices, -1)
                                       for x in gathered)  # fmt: skip
    expected = recv_sizes.reshape(devices, -1)
    for sender in range(devices):
        for i in range(expected.shape[1]):
            row = operands[sender][starts[sender, me, i]]
            # A size on which sender and receiver differ is an error there; here it leaves a trace.
            row = jnp.where(sizes[sender, me, i] == expected[sender, i], row, jnp.nan)
            output = output.at[jnp.where(sizes[sender, me, i] > 0, places[sender, me, i], len(output))].set(
                row, mode="drop"
            )
    return output


@functools.partial(jax.jit, static_argnames=("mesh", "exchange"))
def fetch(x: jax.Array, rows: jax.Array, weights: jax.Array, mesh: Mesh, exchange: bool | None) -> Any:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.value_and_grad(lambda x: (y := fetch_rows(x, rows, exchange=exchange), (y * weights).sum())[::-1],
                                  has_aux=True)(x)  # fmt: skip


@pytest.fixture(scope="module")
def arrays() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(16, 3, 2)), jnp.float32), jnp.asarray(rng.normal(size=(16, 3, 2)), jnp.float32)


@pytest.mark.parametrize("axes", [MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)], ids=["data", "cube"])
@pytest.mark.parametrize("exchange", [None, True], ids=["default", "exchange"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_rows_and_gradients_are_those_of_indexing(arrays, monkeypatch, axes, exchange, rows) -> None:
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", ragged_all_to_all)
    x, weights = arrays
    mesh = make_mesh(axes)
    placed = (jax.device_put(array, NamedSharding(mesh, P(("data", "fsdp")))) for array in (x, rows, weights))
    (_, y), gradient = fetch(*placed, mesh, exchange)
    np.testing.assert_array_equal(y, x[rows])
    wanted = jax.grad(lambda x: (x[rows] * weights).sum())(x)
    chex.assert_trees_all_close(gradient, wanted, rtol=1e-6, atol=1e-6)


def test_without_a_mesh_it_is_indexing(arrays) -> None:
    np.testing.assert_array_equal(fetch_rows(arrays[0], jnp.array([4, 4, 1])), arrays[0][jnp.array([4, 4, 1])])
