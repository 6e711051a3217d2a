"""Every implementation equals `dense`, with gradients, whatever the graph: the kernels as well, interpreted here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stgt_jax.ops.graph_attention import graph_attention

pytestmark = pytest.mark.slow
OTHERS = ("banded", "pallas_tpu", "pallas_gpu")
SIZES = [(1, 7), (2, 3), (3, 5), (4, 1), (5, 3), (6, 1), (7, 3), (8, 1), (9, 3)]  # frames, nodes a frame
HEADS, HEAD_DIM, WIDTH = 2, 4, 6
KINDS = ("random", "base", "opposite", "orthogonal", "zero")
BFLOAT16_BOUND = 2.0**-6  # of the largest magnitude: bfloat16 rounds by 2^-9, inputs, probabilities and outputs


def make_nodes(kinds: list[str], num_nodes: int, rng: np.random.Generator) -> np.ndarray:
    """Nodes [1, N, D] of the given kinds in turn: many exactly alike, opposite, orthogonal, or zero."""
    base, orthogonal = np.zeros(WIDTH), np.zeros(WIDTH)
    base[:3], orthogonal[3:] = rng.standard_normal(3), rng.standard_normal(3)
    fixed = {"base": base, "opposite": -base, "orthogonal": orthogonal, "zero": np.zeros(WIDTH)}
    nodes = [fixed.get(kinds[i % len(kinds)], rng.standard_normal(WIDTH)) for i in range(num_nodes)]
    return np.asarray([nodes], np.float32)


def make_arrays(num_frames: int, patches: int, kinds: list[str], seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    arrays = {
        name: rng.standard_normal((1, num_frames * patches, HEADS, HEAD_DIM)) for name in ("query", "key", "value")
    }
    return {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()} | {
        "nodes": jnp.asarray(make_nodes(kinds, num_frames * patches, rng))
    }


@functools.partial(jax.jit, static_argnames=("implementation", "num_frames", "weighted", "dropout_rate"))
def run(implementation, arrays, sim_threshold, *, num_frames, weighted=True, dropout_rate=0.0):
    """The output and the gradients of query, key and value."""

    def attend(query, key, value):
        return graph_attention(
            query, key, value, arrays["nodes"], num_frames=num_frames, sim_threshold=sim_threshold, weighted=weighted,
            dropout_rate=dropout_rate, dropout_rng=jax.random.key(7), implementation=implementation,
        )  # fmt: skip

    out, pull_back = jax.vjp(attend, arrays["query"], arrays["key"], arrays["value"])
    return out, pull_back(jnp.cos(jnp.arange(out.size)).reshape(out.shape).astype(out.dtype))


def assert_equals_dense(implementation, arrays, sim_threshold, **options) -> None:
    out, grads = run(implementation, arrays, sim_threshold, **options)
    expected, expected_grads = run("dense", arrays, sim_threshold, **options)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    for gradient, wanted in zip(grads, expected_grads, strict=True):
        assert np.isfinite(gradient).all()
        # The second term is for gradients that are 0: of a node with one key, say.
        assert np.linalg.norm(gradient - wanted) <= 1e-4 * np.linalg.norm(wanted) + 1e-5


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    size=st.sampled_from(SIZES),
    sim_threshold=st.sampled_from([-1.0, -0.5, 0.0, 0.1, 0.5, 1.0]) | st.floats(-1.0, 1.0, width=32),
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=7),
    seed=st.integers(0, 2**31),
)
def test_equals_dense(size, sim_threshold, kinds, seed) -> None:
    num_frames, patches = size
    # Every second size with dropout: the same probabilities are dropped.
    options = {"num_frames": num_frames, "dropout_rate": 0.4 if num_frames % 2 else 0.0}
    arrays = make_arrays(num_frames, patches, kinds, seed)
    for implementation in OTHERS:
        assert_equals_dense(implementation, arrays, sim_threshold, **options)


@pytest.mark.parametrize("implementation", OTHERS)
def test_equals_dense_without_the_weights(implementation: str) -> None:
    arrays = make_arrays(3, 5, ["random", "base", "zero"], seed=0)
    assert_equals_dense(implementation, arrays, 0.1, num_frames=3, weighted=False)


@pytest.mark.parametrize("implementation", OTHERS)
def test_no_edges_at_all(implementation: str) -> None:
    arrays = make_arrays(3, 5, ["zero"], seed=0)
    out, grads = run(implementation, arrays, 0.1, num_frames=3, dropout_rate=0.4)
    for array in (out, *grads):
        np.testing.assert_array_equal(array, 0.0)


@pytest.mark.parametrize("implementation", OTHERS)
def test_bfloat16_stays_within_its_bound(implementation: str) -> None:
    arrays = make_arrays(5, 3, ["random", "base", "random", "opposite"], seed=0)
    arrays["nodes"] = arrays["nodes"].astype(jnp.bfloat16).astype(jnp.float32)  # the same graph, no edge flips
    exact = run("dense", arrays, -0.5, num_frames=5)
    rounded = run(implementation, {name: x.astype(jnp.bfloat16) for name, x in arrays.items()}, -0.5, num_frames=5)
    for x, wanted in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
        assert x.dtype == jnp.bfloat16
        assert np.abs(x.astype(jnp.float32) - wanted).max() <= BFLOAT16_BOUND * np.abs(wanted).max()
