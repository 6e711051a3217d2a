"""Graph attention's contract: its shapes, symmetries and band, the edges at the threshold, gradients and precision.

That every implementation keeps it is shown in test_every_implementation.py.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from stgt_jax.ops.graph_attention import adjacency, graph_attention

IMPLEMENTATIONS = ("dense", "banded")
attend = jax.jit(
    graph_attention, static_argnames=("num_frames", "sim_threshold", "weighted", "implementation", "dropout_rate")
)
HEADS, HEAD_DIM, WIDTH = 2, 4, 8


def make_inputs(num_frames: int, patches: int, batch: int = 2, seed: int = 0, dtype=jnp.float32) -> dict:
    keys = jax.random.split(jax.random.key(seed), 4)
    shape = (batch, num_frames * patches, HEADS, HEAD_DIM)
    query, key, value = (jax.random.normal(k, shape, dtype) for k in keys[:3])
    nodes = jax.random.normal(keys[3], (batch, num_frames * patches, WIDTH), dtype)
    return {"query": query, "key": key, "value": value, "nodes": nodes}


def by_the_formula(query, key, value, nodes, *, num_frames, sim_threshold) -> np.ndarray:
    """docs/model.md section 2.3, written with loops in float64."""
    query, key, value, nodes = (np.asarray(x, np.float64) for x in (query, key, value, nodes))
    batch, num_nodes, heads, head_dim = query.shape
    patches = num_nodes // num_frames
    out = np.zeros_like(query)
    for b in range(batch):
        norms = np.linalg.norm(nodes[b], axis=-1)
        for i in range(num_nodes):
            weights = {}
            for j in range(num_nodes):
                if abs(i // patches - j // patches) > 1 or norms[i] == 0 or norms[j] == 0:
                    continue
                similarity = nodes[b, i] @ nodes[b, j] / (norms[i] * norms[j])
                if similarity >= sim_threshold and similarity != 0:
                    weights[j] = similarity
            for h in range(heads):
                scores = [query[b, i, h] @ key[b, j, h] / np.sqrt(head_dim) * w for j, w in weights.items()]
                if scores:
                    probabilities = np.exp(scores - np.max(scores))
                    probabilities /= probabilities.sum()
                    out[b, i, h] = probabilities @ value[b, list(weights), h]
    return out


class GraphAttentionTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.product(implementation=IMPLEMENTATIONS, num_frames=(1, 2, 5))
    def test_equals_the_formula(self, implementation, num_frames):
        inputs = make_inputs(num_frames, patches=3)
        run = self.variant(
            functools.partial(graph_attention, num_frames=num_frames, sim_threshold=0.1, implementation=implementation)
        )
        out = run(**inputs)
        chex.assert_shape(out, inputs["query"].shape)
        expected = by_the_formula(**inputs, num_frames=num_frames, sim_threshold=0.1)
        chex.assert_trees_all_close(out, expected.astype(np.float32), atol=2e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_adjacency_is_symmetric_banded_and_has_self_loops(self):
        nodes = make_inputs(4, 3)["nodes"]
        weights = self.variant(functools.partial(adjacency, num_frames=4, sim_threshold=0.2))(nodes)
        chex.assert_shape(weights, (2, 12, 12))
        chex.assert_type(weights, jnp.float32)
        chex.assert_trees_all_equal(weights, weights.swapaxes(1, 2))
        chex.assert_trees_all_equal(jnp.diagonal(weights, axis1=1, axis2=2), jnp.ones((2, 12)))
        frame = np.arange(12) // 3
        far = np.abs(frame[:, None] - frame[None]) > 1
        assert not np.asarray(weights)[:, far].any()
        assert ((weights == 0) | (weights >= 0.2)).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_permuting_the_nodes_of_a_frame_permutes_the_output(implementation: str) -> None:
    inputs = make_inputs(num_frames=3, patches=4)
    order = np.concatenate([np.arange(4), 4 + np.array([2, 0, 3, 1]), 8 + np.arange(4)])
    run = functools.partial(attend, num_frames=3, sim_threshold=0.0, implementation=implementation)
    permuted = run(**{name: x[:, order] for name, x in inputs.items()})
    chex.assert_trees_all_close(permuted, run(**inputs)[:, order], atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_change_beyond_the_band_cannot_reach(implementation: str) -> None:
    inputs = make_inputs(num_frames=7, patches=3)
    fifth = np.arange(21) // 3 == 5
    other = make_inputs(num_frames=7, patches=3, seed=1)
    changed = {name: jnp.where(fifth.reshape(1, -1, *[1] * (x.ndim - 2)), other[name], x) for name, x in inputs.items()}
    run = functools.partial(attend, num_frames=7, sim_threshold=-1.0, implementation=implementation)
    before, after = (np.asarray(run(**x)).reshape(2, 7, 3, HEADS, HEAD_DIM) for x in (inputs, changed))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])  # frame 3 and all before it
    for frame in (4, 5, 6):
        assert np.abs(before[:, frame] - after[:, frame]).max() > 1e-3


def edges_between(first: list[float], second: list[float], sim_threshold: float) -> float:
    """The weight of the edge between two nodes of one frame."""
    nodes = jnp.asarray([[first, second]], jnp.float32)
    return float(adjacency(nodes, num_frames=1, sim_threshold=sim_threshold)[0, 0, 1])


def test_similarity_exactly_at_the_threshold_is_an_edge() -> None:
    assert edges_between([1, 0, 0, 0], [1, 1, 1, 1], sim_threshold=0.5) == 0.5
    assert edges_between([1, 0, 0, 0], [1, 1, 1, 1], sim_threshold=np.nextafter(np.float32(0.5), np.float32(1))) == 0


def test_similarity_of_zero_is_no_edge_even_below_the_threshold() -> None:
    assert edges_between([1, 0], [0, 1], sim_threshold=-1.0) == 0


def test_negative_similarity_survives_only_a_threshold_that_is_not_positive() -> None:
    assert edges_between([1, 0], [-1, 1], sim_threshold=0.0) == 0
    assert edges_between([1, 0], [-1, 1], sim_threshold=-0.5) == 0
    np.testing.assert_allclose(edges_between([1, 0], [-1, 1], sim_threshold=-0.8), -np.sqrt(0.5), rtol=1e-6)
    assert edges_between([1, 0], [-1, 0], sim_threshold=-1.0) == -1


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_negative_edges_turn_the_scores_around(implementation: str) -> None:
    inputs = make_inputs(num_frames=2, patches=3)
    inputs["nodes"] = inputs["nodes"].at[:, ::2].multiply(-1.0)
    out = attend(**inputs, num_frames=2, sim_threshold=-1.0, implementation=implementation)
    expected = by_the_formula(**inputs, num_frames=2, sim_threshold=-1.0)
    np.testing.assert_allclose(out, expected, atol=2e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_equal_tokens_attend_plainly_inside_the_band(implementation: str) -> None:
    inputs = make_inputs(num_frames=4, patches=2)
    inputs["nodes"] = jnp.ones_like(inputs["nodes"])
    out = attend(**inputs, num_frames=4, sim_threshold=0.9, implementation=implementation)
    frame = np.arange(8) // 2
    band = jnp.asarray(np.abs(frame[:, None] - frame[None]) <= 1)
    plain = jax.nn.dot_product_attention(inputs["query"], inputs["key"], inputs["value"], mask=band[None, None])
    np.testing.assert_allclose(out, plain, atol=2e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_threshold_of_one_leaves_every_node_to_itself(implementation: str) -> None:
    inputs = make_inputs(num_frames=3, patches=3)
    out = attend(**inputs, num_frames=3, sim_threshold=1.0, implementation=implementation)
    np.testing.assert_array_equal(out, inputs["value"])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_zero_token_gets_zeros_is_seen_by_nobody_and_makes_no_nan(implementation: str) -> None:
    inputs = make_inputs(num_frames=3, patches=3)
    inputs["nodes"] = inputs["nodes"].at[:, 4].set(0.0)

    def out_of(value):
        return attend(**{**inputs, "value": value}, num_frames=3, sim_threshold=-1.0, implementation=implementation)

    out = np.asarray(out_of(inputs["value"]))
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(out[:, 4], 0.0)
    np.testing.assert_array_equal(out, out_of(inputs["value"].at[:, 4].set(100.0)))
    grads = jax.grad(lambda x: attend(**x, num_frames=3, sim_threshold=-1.0, implementation=implementation).sum())(
        inputs
    )
    chex.assert_tree_all_finite(grads)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_equal_finite_differences_and_none_reach_the_graph(implementation: str) -> None:
    inputs = make_inputs(num_frames=3, patches=2, batch=1)
    nodes = inputs.pop("nodes")

    def run(query, key, value):
        return attend(query, key, value, nodes, num_frames=3, sim_threshold=0.1, implementation=implementation)

    jax.test_util.check_grads(run, tuple(inputs.values()), order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-2)
    to_nodes = jax.grad(
        lambda n: attend(**inputs, nodes=n, num_frames=3, sim_threshold=0.1, implementation=implementation).sum()
    )(nodes)
    np.testing.assert_array_equal(to_nodes, 0.0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_stays_near_float32(implementation: str) -> None:
    inputs = make_inputs(num_frames=4, patches=6)
    inputs["nodes"] = inputs["nodes"].astype(jnp.bfloat16).astype(jnp.float32)  # the same graph, no edge flips
    run = functools.partial(attend, num_frames=4, sim_threshold=0.1, implementation=implementation)
    exact = run(**inputs)
    rounded = run(**{name: x.astype(jnp.bfloat16) for name, x in inputs.items()})
    chex.assert_type(rounded, jnp.bfloat16)
    np.testing.assert_allclose(rounded.astype(jnp.float32), exact, atol=3e-2)  # values of order 1, 8 bits of mantissa


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dropout_keeps_the_mean_and_follows_its_key(implementation: str) -> None:
    inputs = make_inputs(num_frames=2, patches=3, batch=1)
    run = functools.partial(attend, num_frames=2, sim_threshold=0.0, implementation=implementation)
    dropped = jax.jit(lambda key: run(**inputs, dropout_rate=0.3, dropout_rng=key))
    keys = jax.random.split(jax.random.key(0), 4000)
    mean = jax.vmap(dropped)(keys).mean(axis=0)
    np.testing.assert_allclose(mean, run(**inputs), atol=0.06)
    np.testing.assert_array_equal(dropped(keys[0]), dropped(keys[0]))
    assert np.abs(dropped(keys[0]) - dropped(keys[1])).max() > 0


def test_frames_that_do_not_divide_the_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_frames=4 does not divide the 6 nodes"):
        graph_attention(**make_inputs(num_frames=2, patches=3), num_frames=4, sim_threshold=0.1)


def test_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="'sparse'"):
        graph_attention(**make_inputs(2, 3), num_frames=2, sim_threshold=0.1, implementation="sparse")
