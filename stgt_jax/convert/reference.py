"""Converts between the weights of the public PyTorch release ("the reference") and our parameter tree.

One table pairs each of our parameters with the reference's name and layout. It serves both directions, for weights and
for gradients. We stack the parameters of repeated blocks along a leading layer axis, and keep the query, key and value
projections apart, which the reference partly fuses.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import traverse_util

from stgt_jax.config import GraphConfig, ModelConfig, QFormerConfig, VisionConfig

_Layout = Callable[[np.ndarray], np.ndarray]


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _linear(x: np.ndarray) -> np.ndarray:
    """PyTorch's (out, in) <-> Flax's (in, out)."""
    return x.T


def _conv(x: np.ndarray) -> np.ndarray:
    """(out, in, height, width) -> (height, width, in, out)."""
    return x.transpose(2, 3, 1, 0)


def _conv_back(x: np.ndarray) -> np.ndarray:
    return x.transpose(3, 2, 0, 1)


@dataclass(frozen=True)
class Leaf:
    """One of our parameters, or one layer of it, and the tensor of the reference that it comes from."""

    path: str  # in our tree
    layer: int | None  # its place on the layer axis; None where it is not stacked
    name: str  # in the reference
    layout: _Layout = _same  # from the reference's layout to ours
    layout_back: _Layout = _same
    third: int | None = None  # which third of a fused tensor it is; None: all of it

    def convert(self, array: np.ndarray) -> np.ndarray:
        """The reference's tensor as this parameter, or as this layer of it."""
        return self.layout(array if self.third is None else np.split(array, 3)[self.third])


def to_reference(params: Any, config: ModelConfig) -> dict[str, np.ndarray]:
    """Returns a tree of weights or of gradients under the reference's names.

    Returns:
      name -> float32 array, without the reference's aliases (the tied decoder).
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    parts: dict[str, list[np.ndarray]] = {}
    for leaf in leaves(config):
        array = np.asarray(flat[leaf.path], np.float32)
        parts.setdefault(leaf.name, []).append(leaf.layout_back(array if leaf.layer is None else array[leaf.layer]))
    return {name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for name, arrays in parts.items()}


_VISION = "visual_encoder.blocks.{}."
_GRAPH = "graph_cross_model.resblocks.{}."
_QFORMER = "Qformer.bert.encoder.layer.{}."


def leaves(config: ModelConfig) -> Iterator[Leaf]:
    """All parameters of our tree, layer by layer where they are stacked."""
    yield from _vision(config.vision)
    if config.graph.variant != "none":
        yield from _graph(config.graph)
    yield from _qformer(config.qformer)
    yield from _norm("ln_vision", None, "ln_vision")
    for head in ("vision_proj", "text_proj", "itm_head"):
        yield from _dense(head, None, head)
    yield Leaf("temperature", None, "temp")


def _vision(config: VisionConfig) -> Iterator[Leaf]:
    yield Leaf("vision/patch_embed/kernel", None, "visual_encoder.patch_embed.proj.weight", _conv, _conv_back)
    yield Leaf("vision/patch_embed/bias", None, "visual_encoder.patch_embed.proj.bias")
    yield Leaf("vision/cls_token", None, "visual_encoder.cls_token")
    yield Leaf("vision/pos_embed", None, "visual_encoder.pos_embed")
    for i in range(config.depth):
        first_open = config.depth - config.open_blocks
        ours, layer = ("vision/blocks", i) if i < first_open else ("vision/open_blocks", i - first_open)
        theirs = _VISION.format(i)
        yield from _norm(f"{ours}/norm1", layer, theirs + "norm1")
        yield from _norm(f"{ours}/norm2", layer, theirs + "norm2")
        for third, part in enumerate(("query", "key", "value")):
            yield Leaf(f"{ours}/attention/{part}/kernel", layer, theirs + "attn.qkv.weight", _linear, _linear, third)
        yield Leaf(f"{ours}/attention/query/bias", layer, theirs + "attn.q_bias")
        yield Leaf(f"{ours}/attention/value/bias", layer, theirs + "attn.v_bias")
        yield from _dense(f"{ours}/attention/out", layer, theirs + "attn.proj")
        yield from _dense(f"{ours}/mlp/up", layer, theirs + "mlp.fc1")
        yield from _dense(f"{ours}/mlp/down", layer, theirs + "mlp.fc2")


def _graph(config: GraphConfig) -> Iterator[Leaf]:
    yield Leaf("graph/time_embed", None, "graph_cross_model.time_embed")
    yield Leaf("graph/pos_2d_embed", None, "graph_cross_model.pos_2D_embed")
    yield from _norm("graph/ln_post", None, "graph_cross_model.ln_post")
    yield Leaf("graph/proj/kernel", None, "graph_cross_model.proj")  # there x @ proj: already (in, out)
    for i in range(config.num_layers):
        theirs = _GRAPH.format(i)
        yield from _dense("graph/blocks/proj", i, theirs + "proj_fc")
        for ours, name in (("query", "W_Q"), ("key", "W_K"), ("value", "W_V"), ("out", "W_O")):
            yield from _dense(f"graph/blocks/graph_attention/{ours}", i, theirs + f"graphattn.{name}")
        yield from _residual_block("graph/blocks/cross_frame_attention", i, theirs + "message_attn.")
        yield from _residual_block("graph/blocks/within_frame_attention", i, theirs)


def _residual_block(ours: str, layer: int, theirs: str) -> Iterator[Leaf]:
    for third, part in enumerate(("query", "key", "value")):
        name = f"{ours}/attention/{part}"
        yield Leaf(f"{name}/kernel", layer, theirs + "attn.in_proj_weight", _linear, _linear, third)
        yield Leaf(f"{name}/bias", layer, theirs + "attn.in_proj_bias", third=third)
    yield from _dense(f"{ours}/attention/out", layer, theirs + "attn.out_proj")
    yield from _norm(f"{ours}/ln_1", layer, theirs + "ln_1")
    yield from _norm(f"{ours}/ln_2", layer, theirs + "ln_2")
    yield from _dense(f"{ours}/mlp/up", layer, theirs + "mlp.c_fc")
    yield from _dense(f"{ours}/mlp/down", layer, theirs + "mlp.c_proj")


def _qformer(config: QFormerConfig) -> Iterator[Leaf]:
    embeddings = "Qformer.bert.embeddings."
    yield Leaf("qformer/query_tokens", None, "query_tokens")
    yield Leaf("qformer/word_embed/embedding", None, embeddings + "word_embeddings.weight")
    yield Leaf("qformer/pos_embed/embedding", None, embeddings + "position_embeddings.weight")
    yield from _norm("qformer/embed_norm", None, embeddings + "LayerNorm")
    yield from _dense("qformer/lm_dense", None, "Qformer.cls.predictions.transform.dense")
    yield from _norm("qformer/lm_norm", None, "Qformer.cls.predictions.transform.LayerNorm")
    yield Leaf("qformer/lm_bias", None, "Qformer.cls.predictions.bias")
    num_groups = config.depth // config.cross_attention_freq
    for i in range(config.depth):
        group, position = divmod(i, config.cross_attention_freq)
        ours, layer = ("groups", group) if group < num_groups else ("tail", None)
        yield from _qformer_layer(f"qformer/{ours}/layer_{position}", layer, _QFORMER.format(i), position == 0)


def _qformer_layer(ours: str, layer: int | None, theirs: str, cross_attention: bool) -> Iterator[Leaf]:
    attentions = [("attention", "attention")] + [("cross_attention", "crossattention")] * cross_attention
    for our_name, their_name in attentions:
        for part in ("query", "key", "value"):
            yield from _dense(f"{ours}/{our_name}/{part}", layer, f"{theirs}{their_name}.self.{part}")
        yield from _dense(f"{ours}/{our_name}/out", layer, f"{theirs}{their_name}.output.dense")
        yield from _norm(f"{ours}/{our_name}_norm", layer, f"{theirs}{their_name}.output.LayerNorm")
    for our_name, suffix in (("text_mlp", ""), ("query_mlp", "_query")):
        yield from _dense(f"{ours}/{our_name}/up", layer, f"{theirs}intermediate{suffix}.dense")
        yield from _dense(f"{ours}/{our_name}/down", layer, f"{theirs}output{suffix}.dense")
        yield from _norm(f"{ours}/{our_name}_norm", layer, f"{theirs}output{suffix}.LayerNorm")


def _dense(ours: str, layer: int | None, theirs: str) -> Iterator[Leaf]:
    yield Leaf(f"{ours}/kernel", layer, f"{theirs}.weight", _linear, _linear)
    yield Leaf(f"{ours}/bias", layer, f"{theirs}.bias")


def _norm(ours: str, layer: int | None, theirs: str) -> Iterator[Leaf]:
    yield Leaf(f"{ours}/scale", layer, f"{theirs}.weight")
    yield Leaf(f"{ours}/bias", layer, f"{theirs}.bias")
