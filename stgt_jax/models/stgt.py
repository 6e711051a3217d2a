"""The whole model: ViT -> graph transformer -> Q-Former, and the heads that align video with text (paper Figure 1).

Letters: B videos, T frames, L tokens per frame, D vision width, M graph tokens, Q queries, H Q-Former width,
S text length, E alignment width, V vocabulary, P video-text pairs, A answers.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from stgt_jax.config import ModelConfig
from stgt_jax.models.graph_transformer import GraphTransformer
from stgt_jax.models.layers import layer_norm, normalize
from stgt_jax.models.qformer import QFormer, QueryCache
from stgt_jax.models.vit import VisionTransformer
from stgt_jax.ops.precision import precision_of

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
INITIAL_TEMPERATURE = 0.07
PAD_TOKEN_ID = 0


class STGT(nn.Module):
    """The model. Call its methods through `model.apply({"params": params}, ..., method="encode_video")`.

    With `train=True` the methods draw dropout from the rng stream "dropout".
    """

    config: ModelConfig

    def setup(self) -> None:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        loop = (dtype, config.scan_layers, config.remat)
        self.vision = VisionTransformer(config.vision, *loop)
        if config.graph.variant != "none":
            self.graph = GraphTransformer(config.graph, *loop)
        self.ln_vision = layer_norm(config.ln_vision_epsilon, dtype)
        self.qformer = QFormer(config.qformer, *loop)
        self.vision_proj = nn.Dense(config.embed_dim, dtype=dtype)
        self.text_proj = nn.Dense(config.embed_dim, dtype=dtype)
        self.itm_head = nn.Dense(2, dtype=dtype)
        if config.num_answers:
            self.answer_head = AnswerHead(config.num_answers, dtype)
        self.temperature = self.param("temperature", nn.initializers.constant(INITIAL_TEMPERATURE), ())

    @nn.nowrap
    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """Like flax's. A model in float32 multiplies in float32, whatever the device does by default."""
        with jax.default_matmul_precision(precision_of(self.config.dtype).name.lower()):
            return super().apply(*args, **kwargs)

    def __call__(self, video: jax.Array, input_ids: jax.Array, attention_mask: jax.Array) -> dict[str, Any]:
        """Runs every method once, so that `init` makes every parameter: B videos and B texts -> all their results."""
        out = self.encode_video(video) | self.encode_text(input_ids, attention_mask)
        out["match_logits"] = self.match(out["graph_tokens"], input_ids, attention_mask)
        out["decode_logits"] = self.decode(out["query_cache"], input_ids, attention_mask)
        if self.config.num_answers:
            out["answer_logits"] = self.answer(out["graph_tokens"], input_ids, attention_mask)
        return out

    def encode_frames(self, video: jax.Array) -> jax.Array:
        """Encodes each frame by itself: [B, T, height, width, 3] -> tokens of the ViT [B, T, L, D].

        Tokens that it gave before, [B, T, L, D], are taken as they are.
        """
        dtype = jnp.dtype(self.config.dtype)
        return video.astype(dtype) if video.ndim == 4 else self.vision(normalize_frames(video, dtype))

    def encode_video(self, video: jax.Array, *, train: bool = False) -> dict[str, Any]:
        """Encodes videos, or images as videos of one frame.

        Args:
          video: [B, T, height, width, 3]; uint8, or floating-point and already normalised with CLIP's mean and std. Or
            what `encode_frames` gave for it, [B, T, L, D].
          train: switches dropout on.

        Returns:
          vit_tokens [B, T, L, D]; graph_tokens [B, M, D], which `match` takes; local_tokens, edge_nodes and
          graph_attention [layers, B, N, D]: of each block, the input of graph attention, what its edges are computed
          from, and its output (absent for the graph variant "none");
          query_states [B, Q, H]; video_embed [B, Q, E], float32 of norm 1; query_cache, which `decode` takes.
        """
        vit_tokens = self.encode_frames(video)
        intermediates: dict[str, jax.Array] = {}
        if self.config.graph.variant == "none":
            graph_tokens = vit_tokens.mean(axis=1)
        else:
            graph_tokens, intermediates = self.graph(vit_tokens, train=train)
        query_states, query_cache = self.qformer.encode_queries(self.ln_vision(graph_tokens), train=train)
        return intermediates | {
            "vit_tokens": vit_tokens,
            "graph_tokens": graph_tokens,
            "query_states": query_states,
            "video_embed": normalize(self.vision_proj(query_states)),
            "query_cache": query_cache,
        }

    def encode_text(
        self, input_ids: jax.Array, attention_mask: jax.Array, *, train: bool = False
    ) -> dict[str, jax.Array]:
        """Encodes captions (ids, mask [B, S]) -> text_state [B, H] of [CLS]; text_embed [B, E], float32 of norm 1."""
        text_state = self.qformer.encode_text(input_ids, attention_mask, train=train)[:, 0]
        return {"text_state": text_state, "text_embed": normalize(self.text_proj(text_state))}

    def match(
        self, graph_tokens: jax.Array, input_ids: jax.Array, attention_mask: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """Scores video-text pairs: logits [P, 2] float32; class 1 means "match".

        Args:
          graph_tokens: [B, M, D]. What is computed of them is shared by the texts of a video.
          input_ids: [P, S], P / B texts of each video, one video after the other.
          attention_mask: [P, S].
          train: switches dropout on.
        """
        states = self.qformer.match(self.ln_vision(graph_tokens), input_ids, attention_mask, train=train)
        return self.itm_head(states).astype(jnp.float32).mean(axis=1)

    def answer(
        self, graph_tokens: jax.Array, input_ids: jax.Array, attention_mask: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """Scores the answers to questions: inputs as for `match` -> logits [P, A] float32 (docs/model.md section 5.4).

        The question and the queries run in the matching pattern; the head sees the mean of the query states.
        """
        states = self.qformer.match(self.ln_vision(graph_tokens), input_ids, attention_mask, train=train)
        return self.answer_head(states.mean(axis=1)).astype(jnp.float32)

    def query_cache(self, graph_tokens: jax.Array) -> QueryCache:
        """What `decode` takes, for graph tokens that were kept: the same as of `encode_video`."""
        return self.qformer.encode_queries(self.ln_vision(graph_tokens))[1]

    def decode(
        self,
        query_cache: QueryCache,
        input_ids: jax.Array,
        attention_mask: jax.Array,
        *,
        positions: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Next-token logits of captions that start with [DEC]: ids and mask [B, S] -> [B, S, V] float32.

        With `positions` [B, R] only those after these tokens, [B, R, V].
        """
        return self.qformer.decode(query_cache, input_ids, attention_mask, positions=positions, train=train)

    def decode_step(
        self, query_cache: QueryCache | None, tokens: jax.Array, position: jax.Array | int, *, length: int
    ) -> jax.Array:
        """One token [B] of `decode`, with the variables "cache": -> logits [B, V]; see `QFormer.decode_step`."""
        return self.qformer.decode_step(query_cache, tokens, position, length=length)


class AnswerHead(nn.Module):
    """Linear, ReLU, linear, with twice the width between: [P, H] -> logits of A answers [P, A]."""

    num_answers: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, states: jax.Array) -> jax.Array:
        y = nn.relu(nn.Dense(2 * states.shape[-1], dtype=self.dtype, name="up")(states))
        return nn.Dense(self.num_answers, dtype=self.dtype, name="down")(y)


def init_params(model: STGT, rng: jax.Array) -> Any:
    """Random parameters. Call it under jit or `jax.eval_shape`, so that the forward pass is not computed."""
    vision, frames, text = model.config.vision, model.config.num_frames, model.config.qformer.max_text_length
    video = jnp.zeros((1, frames, vision.image_size, vision.image_size, 3), jnp.uint8)  # [B, T, H, W, 3]
    input_ids = jnp.zeros((1, text), jnp.int32)  # [B, S]
    return model.init(rng, video, input_ids, jnp.ones_like(input_ids))["params"]


@functools.cache
def param_shapes(model: STGT) -> Any:
    """Shape and dtype of every parameter. Cached: a run needs them often, and tracing the model takes seconds."""
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def normalize_frames(video: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Applies CLIP's normalisation to uint8 frames [..., 3]; floating-point frames count as normalised already."""
    if video.dtype != jnp.uint8:
        return video.astype(dtype)
    scaled = video.astype(jnp.float32) / 255.0
    return ((scaled - jnp.asarray(CLIP_MEAN)) / jnp.asarray(CLIP_STD)).astype(dtype)
