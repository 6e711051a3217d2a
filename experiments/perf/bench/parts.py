"""The parts of the train step as functions of named arrays, so that each can be timed alone.

The parts call the model's own methods and `stgt_losses`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp

from stgt_jax.batch import Batch
from stgt_jax.config import LossConfig
from stgt_jax.models.stgt import STGT
from stgt_jax.train.objective import matching_triples, stgt_losses

Arrays = dict[str, Any]  # arrays of the batch and outputs of parts, by name


@dataclass(frozen=True)
class Part:
    """One part of the forward pass.

    `run(model, loss, params, arrays, key)` reads the arrays named in `reads` and returns those named in `outputs`.
    """

    name: str
    reads: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: str  # regular expression for the names of the parameters that it uses, such as "vision/cls_token"
    run: Callable[[STGT, LossConfig, Any, Arrays, jax.Array], dict[str, Any]]

    def uses(self, path: tuple[str, ...]) -> bool:
        """Returns whether the part uses the parameter with this path."""
        return re.match(self.parameters, "/".join(path)) is not None


def _vit(model: STGT, loss: LossConfig, params: Any, arrays: Arrays, key: jax.Array) -> dict[str, Any]:
    def tokens(module: STGT, video: jax.Array) -> jax.Array:
        return module.encode_frames(video)

    return {"vit_tokens": _apply(model, params, key, tokens, arrays["video"])}


def _graph(model: STGT, loss: LossConfig, params: Any, arrays: Arrays, key: jax.Array) -> dict[str, Any]:
    def tokens(module: STGT, vit_tokens: jax.Array) -> jax.Array:
        if module.config.graph.variant == "none":
            return vit_tokens.mean(axis=1)
        return module.graph(vit_tokens, train=True)[0]

    return {"graph_tokens": _apply(model, params, key, tokens, arrays["vit_tokens"])}


def _encode_queries(model: STGT, loss: LossConfig, params: Any, arrays: Arrays, key: jax.Array) -> dict[str, Any]:
    def encode(module: STGT, graph_tokens: jax.Array) -> tuple[jax.Array, Any]:
        states, cache = module.qformer.encode_queries(module.ln_vision(graph_tokens), train=True)
        return module.vision_proj(states).astype(jnp.float32), cache

    video_embed, query_cache = _apply(model, params, key, encode, arrays["graph_tokens"])
    return {"video_embed": video_embed, "query_cache": query_cache}


def _encode_text(model: STGT, loss: LossConfig, params: Any, arrays: Arrays, key: jax.Array) -> dict[str, Any]:
    out = _apply(model, params, key, "encode_text", arrays["input_ids"], arrays["attention_mask"], train=True)
    return {"text_embed": out["text_embed"]}


def _match(model: STGT, loss: LossConfig, params: Any, arrays: Arrays, key: jax.Array) -> dict[str, Any]:
    """Matches 3B pairs as in training: each clip and each text is also in a pair that does not match."""
    graph_tokens, ids, mask = (arrays[name] for name in ("graph_tokens", "input_ids", "attention_mask"))
    other = jnp.roll(jnp.arange(len(ids)), 1)
    pairs = matching_triples(graph_tokens, ids, mask, other, other)
    return {"match_logits": _apply(model, params, key, "match", *pairs, train=True)}


def _decode(model: STGT, loss: LossConfig, params: Any, arrays: Arrays, key: jax.Array) -> dict[str, Any]:
    inputs = (arrays[name] for name in ("query_cache", "input_ids", "attention_mask"))
    return {"decode_logits": _apply(model, params, key, "decode", *inputs, train=True)}


def _losses(model: STGT, loss: LossConfig, params: Any, arrays: Arrays, key: jax.Array) -> dict[str, Any]:
    # `stgt_losses` only hands these on from one method of the model to the next.
    passed_on = {"video": None, "query_cache": None, "graph_tokens": arrays["input_ids"]}
    outputs = cast(STGT, _Outputs(model, arrays | passed_on))
    batch = cast(Batch, arrays | passed_on)
    return {"loss": stgt_losses(outputs, params, batch, key, loss, train=True)[0]}


class _Outputs:
    """Replaces the model in `stgt_losses`: its methods return what the other parts have computed."""

    def __init__(self, model: STGT, arrays: Arrays) -> None:
        self.config = model.config
        self._arrays = arrays

    def apply(self, variables: Any, *inputs: Any, method: str, **options: Any) -> Any:
        if method in ("encode_video", "encode_text"):
            return self._arrays
        return self._arrays[f"{method}_logits"]


def _apply(model: STGT, params: Any, key: jax.Array, method: Any, *inputs: Any, **options: Any) -> Any:
    return model.apply({"params": params}, *inputs, method=method, rngs={"dropout": key}, **options)


_TEXT = ("input_ids", "attention_mask")
_LAYERS = r"qformer/(groups|tail)/layer_\d+"
PARTS = (
    Part("vit", ("video",), ("vit_tokens",), "vision/", _vit),
    Part("graph", ("vit_tokens",), ("graph_tokens",), "graph/", _graph),
    Part(
        "encode_queries",
        ("graph_tokens",),
        ("video_embed", "query_cache"),
        rf"ln_vision/|vision_proj/|qformer/(query_tokens|embed_norm)|{_LAYERS}/(attention|cross_attention|query_mlp)",
        _encode_queries,
    ),
    Part(
        "encode_text",
        _TEXT,
        ("text_embed",),
        rf"text_proj/|qformer/(word_embed|pos_embed|embed_norm)|{_LAYERS}/(attention|text_mlp)",
        _encode_text,
    ),
    Part(
        "match",
        ("graph_tokens", *_TEXT),
        ("match_logits",),
        rf"ln_vision/|itm_head/|qformer/(query_tokens|word_embed|pos_embed|embed_norm)|{_LAYERS}/",
        _match,
    ),
    Part(
        "decode",
        ("query_cache", *_TEXT),
        ("decode_logits",),
        rf"qformer/(word_embed|pos_embed|embed_norm|lm_)|{_LAYERS}/(attention|text_mlp)",
        _decode,
    ),
    Part(
        "losses",
        ("video_embed", "text_embed", "match_logits", "decode_logits", *_TEXT),
        ("loss",),
        "temperature",
        _losses,
    ),
)
