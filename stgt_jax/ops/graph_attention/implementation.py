"""What an implementation of graph attention in memory linear in T provides: `forward` and `backward` on these types.

Three modules satisfy the protocol: `banded`, `pallas_tpu` and `pallas_gpu`.
Letters: B clips, H heads of width d, P nodes a frame, T frames that attend. Tk frames are attended to: Tk = T for whole
clips; Tk = T + 2, with a neighbour before the first frame and after the last, where devices hold parts of a clip.
"""

from typing import NamedTuple, Protocol

import flax.struct
import jax


@flax.struct.dataclass
class Inputs:
    """All that graph attention depends on."""

    query: jax.Array  # [B, T, P, H, d]
    key: jax.Array  # [B, Tk, P, H, d]
    value: jax.Array  # [B, Tk, P, H, d]
    weights: jax.Array  # [B, T, 3, P, P] float32, the graph: see `banded_adjacency`
    dropout: jax.Array  # int32 [5], see `dropout.make_key`
    dropout_rate: float = flax.struct.field(pytree_node=False)  # share of the probabilities set to zero


class Output(NamedTuple):
    """The result of the forward pass."""

    out: jax.Array  # [B, T, P, H, d], in the dtype of the query
    log_sum_exp: jax.Array  # [B, T, P, H] float32, of each node's scores; 0 for a node without an edge


class Gradients(NamedTuple):
    """Of the three inputs that have one, each like its input."""

    query: jax.Array
    key: jax.Array
    value: jax.Array


class Implementation(Protocol):
    """A module with these three functions."""

    def unfit(self, query: jax.Array) -> str:
        """Why it cannot take a query [B, T, P, H, d] on the device in use; empty where it can."""

    def forward(self, inputs: Inputs) -> Output:
        """Attends."""

    def backward(self, inputs: Inputs, output: Output, d_out: jax.Array) -> Gradients:
        """The gradients, from the inputs and the result of `forward` and the gradient of `Output.out`."""
