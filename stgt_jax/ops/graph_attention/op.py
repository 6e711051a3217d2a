"""The function that the model calls: checks its arguments, chooses an implementation and runs it on the mesh in use."""

import dataclasses
import functools
from typing import Any

import jax
from einops import rearrange

from stgt_jax.checks import did_you_mean
from stgt_jax.config import GRAPH_IMPLEMENTATIONS
from stgt_jax.ops.graph_attention import over_mesh
from stgt_jax.ops.graph_attention.dense import dense_attention
from stgt_jax.ops.graph_attention.dropout import make_key
from stgt_jax.ops.graph_attention.graph import adjacency, banded_adjacency
from stgt_jax.ops.graph_attention.implementation import Implementation, Inputs, Output
from stgt_jax.ops.graph_attention.select import choose


def graph_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    nodes: jax.Array,
    *,
    num_frames: int,
    sim_threshold: float,
    weighted: bool = True,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """softmax((query key^T / sqrt(d)) * A) value over the edges of the graph A, the softmax in float32.

    A node without edges (a zero token) gets zeros. Under a mesh (`jax.set_mesh`, with axes of type Auto) clips are
    split over the axes `data` and `fsdp`, heads over `tensor`, and frames over `sequence`: each device then receives
    one neighbouring frame on either side. The compiler splits `dense`.

    Args:
      query: [B, N, heads, d], float32 or bfloat16.
      key: [B, N, heads, d].
      value: [B, N, heads, d].
      nodes: [B, N, D], from which the graph is computed; no gradient flows into them.
      num_frames: T, which must divide N.
      sim_threshold: cosine similarities below it are no edge.
      weighted: False attends over the same edges without multiplying their weights in (ablation).
      dropout_rate: share of the probabilities set to zero.
      dropout_rng: a key for dropout; without one there is none. All implementations drop the same for the same key.
      implementation: "dense" is the formula as written, with N x N matrices. In memory linear in T run "banded", plain
        XLA, and the fused kernels "pallas_tpu" and "pallas_gpu" (interpreted, slowly, on other platforms). "auto" takes
        the kernel of the platform where it fits, else "banded".

    Returns:
      [B, N, heads, d] in the dtype of `query`.

    Raises:
      ValueError: the arrays do not fit together, num_frames does not divide N, dropout_rate is outside [0, 1), or the
        implementation is unknown.
      STGTError: the kernel asked for cannot take these sizes.
    """
    _check_arrays(query, key, value, nodes)
    _check_options(nodes.shape[1], num_frames, dropout_rate, implementation)
    dropout, dropout_rate = make_key(dropout_rng), 0.0 if dropout_rng is None else dropout_rate
    if implementation == "dense":
        weights = adjacency(nodes, num_frames=num_frames, sim_threshold=sim_threshold)  # [B, N, N]
        weights = weights if weighted else _unweighted(weights)
        return dense_attention(query, key, value, weights, dropout, dropout_rate)
    query, key, value, nodes = (
        rearrange(x, "b (t p) ... -> b t p ...", t=num_frames) for x in (query, key, value, nodes)
    )

    def attend(query: jax.Array, key: jax.Array, value: jax.Array, nodes: jax.Array, dropout: jax.Array) -> jax.Array:
        weights = banded_adjacency(nodes, num_frames=query.shape[1], sim_threshold=sim_threshold)  # [B, T, 3, P, P]
        weights = weights if weighted else _unweighted(weights)
        return _attend(choose(implementation, query), Inputs(query, key, value, weights, dropout, dropout_rate))

    return rearrange(over_mesh.run(attend, query, key, value, nodes, dropout), "b t p h d -> b (t p) h d")


def _check_arrays(query: jax.Array, key: jax.Array, value: jax.Array, nodes: jax.Array) -> None:
    """Refuses arrays that do not fit together: a kernel would read beyond the end of one that is too short."""
    for name, array in (("key", key), ("value", value)):
        if (array.shape, array.dtype) != (query.shape, query.dtype):
            raise ValueError(f"{name} {array.dtype}{array.shape} must be like query {query.dtype}{query.shape}")
    if query.ndim != 4 or nodes.shape[:-1] != query.shape[:2]:
        raise ValueError(f"nodes {nodes.shape} must be [B, N, D] where query {query.shape} is [B, N, heads, d]")


def _check_options(num_nodes: int, num_frames: int, dropout_rate: float, implementation: str) -> None:
    if num_frames < 1 or num_nodes % num_frames:
        raise ValueError(f"num_frames={num_frames} does not divide the {num_nodes} nodes")
    if not 0.0 <= dropout_rate < 1.0:
        raise ValueError(f"dropout_rate={dropout_rate} must lie in [0, 1)")
    if implementation not in GRAPH_IMPLEMENTATIONS:
        hint = did_you_mean(implementation, GRAPH_IMPLEMENTATIONS)
        raise ValueError(f"implementation='{implementation}' is unknown{hint}")


def _unweighted(weights: jax.Array) -> jax.Array:
    return (weights != 0).astype(weights.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(implementation: Implementation, inputs: Inputs) -> jax.Array:
    return implementation.forward(inputs).out


def _attend_forward(implementation: Implementation, inputs: Inputs) -> tuple[jax.Array, tuple[Inputs, Output]]:
    output = implementation.forward(inputs)
    return output.out, (inputs, output)


def _attend_backward(
    implementation: Implementation, residuals: tuple[Inputs, Output], d_out: jax.Array
) -> tuple[Inputs]:
    inputs, output = residuals
    d_query, d_key, d_value = implementation.backward(inputs, output, d_out)
    none: Any = None  # no gradient flows into the graph and the dropout key
    return (dataclasses.replace(inputs, query=d_query, key=d_key, value=d_value, weights=none, dropout=none),)


_attend.defvjp(_attend_forward, _attend_backward)
