"""Graph attention: the weights of a cosine-similarity graph over neighbouring frames, multiplied into attention scores.

The nodes are the P local tokens of T frames, N = T * P, frame after frame (paper section 3.2,
docs/model.md section 2.3).

    op -> graph -> dense                                         the formula as it is written
       -> over_mesh -> graph -> banded | pallas_tpu | pallas_gpu  linear in T, one contract: forward and backward
"""

from stgt_jax.ops.graph_attention.graph import adjacency
from stgt_jax.ops.graph_attention.op import graph_attention

__all__ = ["adjacency", "graph_attention"]
