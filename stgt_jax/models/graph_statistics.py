"""What the graph of a model links, and where its attention goes (docs/model.md section 2.3).

A graph whose edges all lie within the frames carries nothing from frame to frame, whatever the model learns. The first
graph block is looked at. Letters: B clips, T frames, P patches of a frame, N = T * P nodes, h heads, d their width.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from stgt_jax.config import GraphConfig
from stgt_jax.models.stgt import STGT
from stgt_jax.ops.graph_attention import NO_EDGE, banded_adjacency
from stgt_jax.ops.precision import precision_of

_OWN_FRAME = 1  # of the three frames that a frame's nodes may have edges to: before, own, after


def edge_shares(model: STGT, params: Any, video: jax.Array) -> jax.Array:
    """The share of the pairs of nodes in neighbouring frames that have an edge, for each clip [B, T, ...]: [B]."""

    def of_clip(edge_nodes: jax.Array) -> jax.Array:
        return _share_of_edges_between(_weights(model.config.graph, edge_nodes, video.shape[1]))

    return jax.lax.map(of_clip, _nodes(model, params, video)[1])


def graph_statistics(model: STGT, params: Any, video: jax.Array, objects: jax.Array) -> dict[str, jax.Array]:
    """What each clip's graph links, and where its attention goes.

    Args:
      model: with the graph module.
      params: its parameters.
      video: as for `STGT.encode_video`.
      objects: int [B, T, P], the object that each patch shows; -1 for none.

    Returns:
      float32 [B] each:
      edges_between: share of the pairs of nodes in neighbouring frames that have an edge.
      edges_within: share of the pairs of different nodes of a frame that have one.
      weight_between: mean weight of the edges between frames; NaN where there is none.
      attention_between: share of the attention that goes to other frames.
      entropy: of a node's attention, in nats, averaged over nodes and heads.
      own_object: of the attention that nodes of an object pay to other frames, the share on that very object; NaN
        where no object is in two neighbouring frames.
      own_object_by_chance: the same share if that attention were spread evenly over the nodes of those frames.
      own_object_by_edges: the same share if it were spread evenly over the edges.
    """
    config = model.config.graph
    block = jax.tree.map(lambda leaf: leaf[0], params["graph"]["blocks"]["graph_attention"])

    def of_clip(inputs: tuple[jax.Array, jax.Array, jax.Array]) -> dict[str, jax.Array]:
        nodes, edge_nodes, shown = inputs
        weights = _weights(config, edge_nodes, video.shape[1])
        attention = _attention(config, block, nodes, weights)
        return _edges(weights) | _attention_figures(attention) | _on_objects(attention, weights, shown)

    return jax.lax.map(of_clip, (*_nodes(model, params, video), objects))


def _nodes(model: STGT, params: Any, video: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The input of the first block's graph attention, and what its edges are computed from: [B, N, D] each."""
    out: Any = model.apply({"params": params}, video, method="encode_video")
    return out["local_tokens"][0], out["edge_nodes"][0]


def _weights(config: GraphConfig, nodes: jax.Array, num_frames: int) -> jax.Array:
    """Nodes [N, D] -> the weights of a clip's edges, [T, 3, P, P]."""
    nodes = rearrange(nodes, "(t p) d -> 1 t p d", t=num_frames)
    return banded_adjacency(nodes, num_frames=num_frames, sim_threshold=config.sim_threshold)[0]


def _attention(config: GraphConfig, block: Any, nodes: jax.Array, weights: jax.Array) -> jax.Array:
    """The probabilities of graph attention, float32 [h, T, 3, P, P]: from a frame to that before, itself, and after."""
    num_frames = weights.shape[0]

    def heads(name: str) -> Any:
        y = nn.Dense(nodes.shape[-1], dtype=nodes.dtype).apply({"params": block[name]}, nodes)
        return rearrange(y, "(t p) (h d) -> t h p d", t=num_frames, h=config.num_heads)

    query, key = heads("query"), jnp.pad(heads("key"), [(1, 1), (0, 0), (0, 0), (0, 0)])
    keys = jnp.stack([key[:-2], key[1:-1], key[2:]], axis=1)  # [T, 3, h, P, d]
    scores = jnp.einsum("thpd,tnhkd->htpnk", query, keys, precision=precision_of(nodes.dtype)).astype(jnp.float32)
    by_query = rearrange(weights, "t n p k -> t p n k")
    scores *= (by_query if config.variant == "full" else 1.0) * query.shape[-1] ** -0.5
    scores = jnp.where(by_query != 0, scores, NO_EDGE)
    probabilities = jax.nn.softmax(rearrange(scores, "h t p n k -> h t p (n k)"), axis=-1)
    probabilities = rearrange(probabilities, "h t p (n k) -> h t n p k", n=3)
    return jnp.where(weights != 0, probabilities, 0.0)


def _between(blocks: jax.Array) -> jax.Array:
    """The blocks that lead to other frames: [..., 3, P, P] -> [..., 2, P, P]."""
    return jnp.delete(blocks, _OWN_FRAME, axis=-3)


def _share_of_edges_between(weights: jax.Array) -> jax.Array:
    num_frames, num_nodes = weights.shape[0], weights.shape[-1]
    return (_between(weights) != 0).sum() / max(1, 2 * (num_frames - 1) * num_nodes**2)


def _edges(weights: jax.Array) -> dict[str, jax.Array]:
    num_frames, num_nodes = weights.shape[0], weights.shape[-1]
    between, own = _between(weights), weights[:, _OWN_FRAME]
    num_within = ((own != 0) & ~jnp.eye(num_nodes, dtype=bool)).sum()
    return {
        "edges_between": _share_of_edges_between(weights),
        "edges_within": num_within / max(1, num_frames * num_nodes * (num_nodes - 1)),
        "weight_between": between.sum() / (between != 0).sum(),
    }


def _attention_figures(attention: jax.Array) -> dict[str, jax.Array]:
    heads, num_frames, _, num_nodes, _ = attention.shape
    rows = heads * num_frames * num_nodes
    return {
        "attention_between": _between(attention).sum() / rows,
        "entropy": jax.scipy.special.entr(attention).sum() / rows,
    }


def _on_objects(attention: jax.Array, weights: jax.Array, objects: jax.Array) -> dict[str, jax.Array]:
    """The figures of an object's nodes whose object is also in a neighbouring frame; objects [T, P]."""
    padded = jnp.pad(objects, [(1, 1), (0, 0)], constant_values=-2)  # -2: there is no such frame
    others = jnp.stack([padded[:-2], padded[2:]], axis=1)[:, :, None]  # [T, 2, 1, P]
    own = objects[:, None, :, None]  # [T, 1, P, 1]
    is_same = (own == others) & (own >= 0)  # [T, 2, P, P]
    counts = is_same.any(axis=(1, 3), keepdims=True)  # [T, 1, P, 1], the nodes that could look at their own object
    share = partial(_share, is_same=is_same, counts=counts)
    return {
        "own_object": share(_between(attention).sum(axis=0)),
        "own_object_by_chance": share((others >= -1).astype(jnp.float32)),
        "own_object_by_edges": share((_between(weights) != 0).astype(jnp.float32)),
    }


def _share(amounts: jax.Array, *, is_same: jax.Array, counts: jax.Array) -> jax.Array:
    return jnp.where(is_same, amounts, 0.0).sum() / jnp.where(counts, amounts, 0.0).sum()
