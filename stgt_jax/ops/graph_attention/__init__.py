"""Graph attention: attention whose scores are multiplied by the weights of a graph between neighbouring frames.

Nodes are the P local tokens of each of T frames, N = T * P, frame by frame (paper section 3.2,
docs/model.md section 2.3).

    op -> graph -> dense                                          the formula as written, memory quadratic in T
       -> over_mesh -> graph -> banded | pallas_tpu | pallas_gpu  memory linear in T; `implementation` is their protocol
"""

from stgt_jax.ops.graph_attention.graph import NO_EDGE, adjacency, banded_adjacency
from stgt_jax.ops.graph_attention.op import graph_attention

__all__ = ["NO_EDGE", "adjacency", "banded_adjacency", "graph_attention"]
