"""The training forward: from a batch through the model to the total loss of a stage (docs/model.md section 4.6).

The losses are those of the global batch, however many devices it is split over. Letters: B clips, M graph tokens,
D vision width, S text length.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange

from stgt_jax.batch import Batch
from stgt_jax.config import LossConfig
from stgt_jax.contrastive import contrast
from stgt_jax.losses import vtg_loss, vtm_loss
from stgt_jax.models.qformer import QueryCache
from stgt_jax.models.stgt import STGT
from stgt_jax.ops.fetch_rows import fetch_rows

Losses = tuple[jax.Array, dict[str, jax.Array]]  # the total, and what is logged


class Triples(NamedTuple):
    """The inputs of `match`, three rows for each clip: its own pair, another video with its text, another text."""

    graph_tokens: jax.Array  # [3B, M, D]
    input_ids: jax.Array  # [3B, S]
    attention_mask: jax.Array  # [3B, S]


def matching_triples(
    graph_tokens: jax.Array,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    negative_video: jax.Array,
    negative_text: jax.Array,
) -> Triples:
    """Combines videos and texts to matching and non-matching pairs.

    The three rows of a clip stay on the device that holds the clip. Only the tokens of the negative videos are sent
    between devices, and the texts, which are small.

    Args:
      graph_tokens: [B, M, D].
      input_ids: [B, S].
      attention_mask: [B, S].
      negative_video: [B], a video for each text.
      negative_text: [B], a text for each video.
    """

    def by_clip(*three: jax.Array) -> jax.Array:
        return rearrange(jnp.stack(three, axis=1), "b three ... -> (b three) ...")

    def with_negative(x: jax.Array) -> jax.Array:
        return by_clip(x, x, x[negative_text])

    tokens = by_clip(graph_tokens, fetch_rows(graph_tokens, negative_video), graph_tokens)
    return Triples(tokens, with_negative(input_ids), with_negative(attention_mask))


def losses(model: STGT, params: Any, batch: Batch, rng: jax.Array, config: LossConfig) -> Losses:
    """The losses of the objective that `config` names, in training: one of the three functions below."""
    if config.objective == "captioning":
        return caption_losses(model, params, batch, rng, config, train=True)
    if config.objective == "answering":
        return answer_losses(model, params, batch, rng, train=True)
    return stgt_losses(model, params, batch, rng, config, train=True)


def caption_losses(
    model: STGT, params: Any, batch: Batch, rng: jax.Array, config: LossConfig, *, train: bool
) -> Losses:
    """VTG alone, to fine-tune a model for captioning; the arguments are those of `stgt_losses`.

    Returns:
      (loss, {"loss", "loss_vtg"}), scalars.
    """
    video_rng, text_rng = jax.random.split(rng)
    video = model.apply(
        {"params": params}, batch["video"], train=train, method="encode_video", rngs={"dropout": video_rng}
    )
    loss = _generation_loss(model, params, video["query_cache"], batch, text_rng, config, train=train)
    return loss, {"loss": loss, "loss_vtg": loss}


def answer_losses(model: STGT, params: Any, batch: Batch, rng: jax.Array, *, train: bool) -> Losses:
    """The cross-entropy of the answers, over the questions whose answer is listed (docs/model.md section 5.4).

    The other arguments are those of `stgt_losses`; the texts of the batch are questions.

    Returns:
      (loss, {"loss", "accuracy_answer", "listed"}), scalars; "listed" is the share of questions that count. An answer
      that is not listed is wrong in the accuracy.
    """
    video_rng, text_rng = jax.random.split(rng)
    tokens = model.apply(
        {"params": params}, batch["video"], train=train, method="encode_video", rngs={"dropout": video_rng}
    )["graph_tokens"]
    logits = model.apply(
        {"params": params}, tokens, batch["input_ids"], batch["attention_mask"],
        train=train, method="answer", rngs={"dropout": text_rng},
    )  # fmt: skip
    answer = batch["answer"]
    listed = answer >= 0
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(answer, 0))
    loss = jnp.where(listed, cross_entropy, 0.0).sum() / jnp.maximum(listed.sum(), 1)
    accuracy = (logits.argmax(axis=1) == answer).mean()
    return loss, {"loss": loss, "accuracy_answer": accuracy, "listed": listed.mean()}


def _generation_loss(
    model: STGT, params: Any, query_cache: QueryCache, batch: Batch, rng: jax.Array, config: LossConfig, *, train: bool
) -> jax.Array:
    """VTG of the captions, which the decoder reads with [DEC] in the place of [CLS]."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    decoder_ids = ids.at[:, 0].set(model.config.qformer.dec_token_id)
    logits = model.apply(
        {"params": params}, query_cache, decoder_ids, mask, train=train, method="decode", rngs={"dropout": rng}
    )
    return vtg_loss(logits, ids, mask, label_smoothing=config.vtg_label_smoothing)


def stgt_losses(
    model: STGT,
    params: Any,
    batch: Batch,
    rng: jax.Array,
    config: LossConfig,
    *,
    train: bool,
    negatives: tuple[jax.Array, jax.Array] | None = None,
) -> Losses:
    """The losses of one stage: contrastive (VTC or CSAL) + VTM + VTG.

    Args:
      model: the model.
      params: its parameters.
      batch: the global batch.
      rng: a key for dropout and the hard negatives.
      config: which contrastive loss, and the label smoothing of each loss.
      train: switches dropout on.
      negatives: (a video for each text, a text for each video), [B] each, to use instead of drawing them.

    Returns:
      (total loss, {"loss", "loss_contrastive", "loss_vtm", "loss_vtg", "accuracy_v2t", "accuracy_t2v",
      "accuracy_vtm", "temperature"}), scalars.
    """
    negative_rng, *method_rngs, decode_rng = jax.random.split(rng, 5)
    ids, mask = batch["input_ids"], batch["attention_mask"]

    def apply(method: str, *inputs: Any) -> Any:
        rngs = {"dropout": method_rngs[("encode_video", "encode_text", "match").index(method)]}
        return model.apply({"params": params}, *inputs, train=train, method=method, rngs=rngs)

    video = apply("encode_video", batch["video"])
    text = apply("encode_text", ids, mask)

    contrastive = contrast(video["video_embed"], text["text_embed"], params["temperature"], negative_rng, config)
    chosen = negatives or (contrastive.negative_video, contrastive.negative_text)
    match_logits = apply("match", *matching_triples(video["graph_tokens"], ids, mask, *chosen))
    match_labels = (jnp.arange(len(match_logits)) % 3 == 0).astype(jnp.int32)  # the first of each three is a match
    loss_vtm = vtm_loss(match_logits, match_labels)

    loss_vtg = _generation_loss(model, params, video["query_cache"], batch, decode_rng, config, train=train)

    loss = contrastive.loss + loss_vtm + loss_vtg
    return loss, {
        "loss": loss,
        "loss_contrastive": contrastive.loss,
        "loss_vtm": loss_vtm,
        "loss_vtg": loss_vtg,
        "accuracy_v2t": contrastive.accuracy_v2t,
        "accuracy_t2v": contrastive.accuracy_t2v,
        "accuracy_vtm": (match_logits.argmax(axis=1) == match_labels).mean(),
        "temperature": params["temperature"],
    }
