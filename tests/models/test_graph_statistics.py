"""What the graph links and where its attention goes, compared with the whole matrices of a small model."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from models_for_tests import tiny

from stgt_jax.config import ModelConfig
from stgt_jax.encoder import Encoder
from stgt_jax.models.stgt import STGT, init_params
from stgt_jax.ops.graph_attention import adjacency

pytestmark = pytest.mark.slow
CLIPS, THRESHOLD = 3, 0.4


def config(**graph: Any) -> ModelConfig:
    small = dataclasses.replace(tiny(), vision=dataclasses.replace(tiny().vision, depth=1))
    return dataclasses.replace(small, graph=dataclasses.replace(small.graph, sim_threshold=THRESHOLD, **graph))


@pytest.fixture(scope="module")
def params() -> Any:
    # Large keys and queries: attention that is nearly uniform would hide a mistake.
    made = jax.jit(lambda: init_params(STGT(config(time_embed_std=0.3)), jax.random.key(0)))()
    attention = made["graph"]["blocks"]["graph_attention"]
    for name in ("query", "key"):
        attention[name]["kernel"] *= 4.0
    return made


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (CLIPS, 4, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def objects() -> np.ndarray:
    return np.random.default_rng(1).integers(-1, 4, (CLIPS, 4, 16))


def whole_matrices(model: ModelConfig, params: Any, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The adjacency [V, N, N], and the attention as the formula is written [V, heads, N, N]."""
    nodes = STGT(model).apply({"params": params}, clips, method="encode_video")["local_tokens"][0]
    weights = np.asarray(adjacency(nodes, num_frames=4, sim_threshold=THRESHOLD))
    block = jax.tree.map(lambda leaf: leaf[0], params["graph"]["blocks"]["graph_attention"])
    query, key = (
        nn.Dense(32).apply({"params": block[name]}, nodes).reshape(CLIPS, 64, 4, 8) for name in ("query", "key")
    )
    scores = jnp.einsum("vihd,vjhd->vhij", query, key) / np.sqrt(8.0)
    scores = scores * (weights[:, None] if model.graph.variant == "full" else 1.0)
    return weights, np.asarray(jax.nn.softmax(jnp.where(weights[:, None] != 0, scores, -jnp.inf), axis=-1))


@pytest.mark.parametrize("variant", ["full", "unweighted"])
def test_figures_are_those_of_the_whole_matrices(
    variant: Any, params: Any, clips: np.ndarray, objects: np.ndarray
) -> None:
    model = config(variant=variant)
    figures = Encoder(model, params, batch_size=2).graph_statistics(clips, objects)
    weights, attention = whole_matrices(model, params, clips)
    frame = np.arange(64) // 16
    between, within = abs(frame[:, None] - frame) == 1, (frame[:, None] == frame) & ~np.eye(64, dtype=bool)
    for clip in range(CLIPS):
        edges, to = weights[clip] != 0, attention[clip].sum(axis=0)
        shown = objects[clip].reshape(-1)
        same = (shown[:, None] == shown) & (shown[:, None] >= 0) & between
        counts = between & same.any(axis=1, keepdims=True)
        expected = {
            "edges_between": edges[between].mean(),
            "edges_within": edges[within].mean(),
            "weight_between": weights[clip][between & edges].mean(),
            "attention_between": to[between].sum() / to.sum(),
            "entropy": -np.where(edges, attention[clip] * np.log(np.maximum(attention[clip], 1e-30)), 0).sum()
            / (4 * 64),
            "own_object": to[same].sum() / to[counts].sum(),
            "own_object_by_chance": same.sum() / counts.sum(),
            "own_object_by_edges": edges[same].sum() / edges[counts].sum(),
        }
        assert figures.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(figures[name][clip], value, rtol=1e-4, err_msg=name)
    assert 0.05 < figures["edges_between"].mean() < 0.95 and 0.02 < figures["attention_between"].mean() < 0.98


def test_edges_come_from_the_vision_tokens_where_asked(params: Any, clips: np.ndarray, objects: np.ndarray) -> None:
    encoder = Encoder(config(edges_from="vision"), params, batch_size=CLIPS)
    tokens = STGT(encoder.model.config).apply({"params": params}, clips, method="encode_frames")[:, :, 1:]
    nodes = tokens.reshape(CLIPS, 64, 32)
    expected = adjacency(nodes, num_frames=4, sim_threshold=THRESHOLD)
    np.testing.assert_allclose(encoder.adjacency(clips), expected, atol=1e-5)
    share = np.asarray(expected).reshape(CLIPS, 4, 16, 4, 16)[:, :3, :, 1:] != 0
    between = np.stack([share[:, frame, :, frame] for frame in range(3)]).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(encoder.edge_shares(clips), between, rtol=1e-5)


def test_edge_shares_are_the_same_figure(params: Any, clips: np.ndarray, objects: np.ndarray) -> None:
    encoder = Encoder(config(), params, batch_size=2)
    np.testing.assert_array_equal(encoder.edge_shares(clips), encoder.graph_statistics(clips, objects)["edges_between"])


def test_graph_without_edges_between_frames_says_so(params: Any, clips: np.ndarray, objects: np.ndarray) -> None:
    # Rows that point in opposite directions make neighbouring frames unlike.
    rows = 1e3 * jnp.array([1.0, -1.0, 1.0, -1.0])[:, None] * jnp.ones(32)
    apart = {**params, "graph": {**params["graph"], "time_embed": rows}}
    figures = Encoder(config(), apart, batch_size=3).graph_statistics(clips, objects)
    assert (figures["edges_between"] == 0).all() and (figures["attention_between"] == 0).all()
    assert np.isnan(figures["weight_between"]).all() and np.isnan(figures["own_object"]).all()
