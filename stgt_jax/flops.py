"""The floating-point operations (FLOPs) that the model needs, computed from its sizes, to compare measured times with.

Only matrix products count: 2 operations for each multiply-add. Recomputation to save memory (remat), masked entries and
padding do not count. Norms, activations and softmaxes, a few percent, do not count either. Letters: B clips, T frames,
P patches and L = 1 + P tokens a frame, D vision width, M graph tokens, Q queries, H Q-Former width, S text length,
E alignment width, V vocabulary.
"""

from dataclasses import dataclass

from stgt_jax.config import GraphConfig, ModelConfig, QFormerConfig, VisionConfig


@dataclass(frozen=True)
class Flops:
    """The operations of one part for a whole batch."""

    forward: int
    backward: int  # 0 where neither the part nor anything before it trains

    @property
    def total(self) -> int:
        """Forward and backward pass together."""
        return self.forward + self.backward

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)


def model_flops(config: ModelConfig, *, batch: int, frames: int, text_length: int) -> dict[str, Flops]:
    """Counts one training step, without the optimizer, which has no matrix products.

    Args:
      config: the model's.
      batch: B.
      frames: T.
      text_length: S.

    Returns:
      The counts by part, in the order the parts run: "vit", "graph", the Q-Former's passes "encode_queries",
      "encode_text", "match" (3B pairs) and "decode", and "losses" (the similarities of all videos with all texts).
    """
    vision, qformer = config.vision, config.qformer
    tokens, queries = _graph_tokens(config, frames), qformer.num_queries
    similarity = 2 * batch * batch * queries * config.embed_dim
    return {
        "vit": _vit(vision, batch * frames),
        "graph": graph_transformer_flops(
            config.graph, batch=batch, frames=frames, patches=vision.grid**2, width=vision.width
        ),
        "encode_queries": _trained(
            batch * _qformer(qformer, tokens, vision.width, queries=queries)
            + _linear(batch * queries, qformer.width, config.embed_dim)
        ),
        "encode_text": _trained(
            batch * _qformer(qformer, text=text_length) + _linear(batch, qformer.width, config.embed_dim)
        ),
        "match": _trained(
            3 * batch * _qformer(qformer, tokens, vision.width, queries=queries, text=text_length)
            + _linear(3 * batch * queries, qformer.width, 2)
        ),
        "decode": _trained(
            batch * _qformer(qformer, text=text_length, seen_queries=queries)
            + _linear(batch * text_length, qformer.width, qformer.width)
            + _linear(batch * text_length, qformer.width, qformer.vocab_size)
        ),
        "losses": _trained(similarity),
    }


def graph_attention_flops(*, batch: int, frames: int, patches: int, width: int) -> Flops:
    """Graph attention without its projections, on the 3T - 2 blocks of neighbouring frames only.

    Forward: two products a block, and the cosine similarities of 2T - 1 blocks, because they are symmetric. Backward:
    five products a block, one of which recomputes the scores, as every implementation in memory linear in T must. The
    similarities have no gradient.
    """
    product = 2 * batch * patches**2 * width
    blocks, pairs = 3 * frames - 2, 2 * frames - 1
    return Flops((2 * blocks + pairs) * product, 5 * blocks * product)


def graph_block_flops(*, batch: int, frames: int, patches: int, width: int) -> Flops:
    """A whole graph block: graph attention, its projections, and the attention across and within frames."""
    tokens = batch * frames * (1 + patches)
    return (
        _trained(_linear(tokens, width, width))
        + _trained(2 * batch * _residual_block(frames, width))  # global tokens across frames, twice
        + _trained(4 * _linear(batch * frames * patches, width, width))
        + graph_attention_flops(batch=batch, frames=frames, patches=patches, width=width)
        + _trained(batch * frames * _residual_block(1 + patches, width))
    )


def graph_transformer_flops(config: GraphConfig, *, batch: int, frames: int, patches: int, width: int) -> Flops:
    """The graph module: its blocks and the last projection; 0 for the variant "none"."""
    if config.variant == "none":
        return Flops(0, 0)
    total = _trained(_linear(batch * _condensed(frames, patches), width, width))
    for _ in range(config.num_layers):
        total += graph_block_flops(batch=batch, frames=frames, patches=patches, width=width)
    return total


def _trained(forward: int) -> Flops:
    """A part that trains: the backward pass has two products for each one, for the gradients of both factors."""
    return Flops(forward, 2 * forward)


def _vit(config: VisionConfig, frames: int) -> Flops:
    """The backward pass ends at the lowest block that trains."""
    patches = frames * config.grid**2
    embed = _linear(patches, 3 * config.patch_size**2, config.width)
    block = frames * (
        _attention(config.tokens_per_frame, config.width) + _mlp(config.tokens_per_frame, config.width, config.mlp_dim)
    )
    forward = embed + config.depth * block
    return Flops(forward, 2 * config.open_blocks * block) if config.freeze else _trained(forward)


def _graph_tokens(config: ModelConfig, frames: int) -> int:
    """M."""
    if config.graph.variant == "none":
        return config.vision.tokens_per_frame
    return _condensed(frames, config.vision.grid**2)


def _condensed(frames: int, patches: int) -> int:
    return 1 + patches if frames == 1 else frames * (1 + 2 * round(patches**0.5))


def _qformer(
    config: QFormerConfig,
    vision_tokens: int = 0,
    vision_width: int = 0,
    *,
    queries: int = 0,
    text: int = 0,
    seen_queries: int = 0,
) -> int:
    """All layers for one clip; `seen_queries` is the number of cached queries that the text attends to."""
    width, total = config.width, 0
    for layer in range(config.depth):
        total += _attention(queries + text, width, context=queries + text + seen_queries)
        if queries and layer % config.cross_attention_freq == 0:
            total += _attention(queries, width, context=vision_tokens, context_width=vision_width)
        total += _mlp(queries, width, config.mlp_dim)
        if not (queries and layer == config.depth - 1):  # matching uses only the queries of the last layer
            total += _mlp(text, width, config.mlp_dim)
    return total


def _residual_block(length: int, width: int) -> int:
    return _attention(length, width) + _mlp(length, width, 4 * width)


def _attention(length: int, width: int, *, context: int | None = None, context_width: int | None = None) -> int:
    """Multi-head attention, with its projections, of `length` queries to `context` keys (by default to themselves)."""
    context = length if context is None else context
    context_width = width if context_width is None else context_width
    projections = 2 * _linear(length, width, width) + 2 * _linear(context, context_width, width)
    return projections + 2 * (2 * length * context * width)


def _mlp(length: int, width: int, mlp_dim: int) -> int:
    return 2 * _linear(length, width, mlp_dim)


def _linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs
