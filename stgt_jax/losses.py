"""The losses of both stages: VTC or CSAL, VTM with hard negatives, VTG (paper section 3.3, SPEC section 4).

All are written on the global batch. Under `jit` with a batch sharded over devices the compiler inserts the
collectives, so one device and many compute the same numbers. Letters: B clips, Q queries, E alignment width, S text
length, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from stgt_jax.config import LossConfig
from stgt_jax.models.stgt import STGT

_SELF = -1e30  # takes the own pair out of a softmax
_CSAL_MIN_SIMILARITY = 0.05
_CSAL_SHARPNESS = 5.0


def similarity(video_embed: jax.Array, text_embed: jax.Array) -> jax.Array:
    """s(i, j) = max over queries of v[i, q] . t[j]: [Bv, Q, E], [Bt, E] -> [Bv, Bt]."""
    return jnp.einsum("vqe,te->vtq", video_embed, text_embed).max(axis=-1)


def vtc_loss(logits: jax.Array, *, label_smoothing: float) -> jax.Array:
    """Video-text contrastive loss, both directions: logits s / temperature, video by text [B, B] -> scalar."""
    targets = jnp.eye(logits.shape[0])
    return _two_way_cross_entropy(logits, targets, label_smoothing)


def csal_targets(video_embed: jax.Array, text_embed: jax.Array) -> jax.Array:
    """Soft targets from the batch's own similarities: [B, Q, E], [B, E] -> [B, B], rows sum to 1."""
    video = video_embed.mean(axis=1)
    video = video / jnp.maximum(jnp.linalg.norm(video, axis=-1, keepdims=True), 1e-12)
    cross = jax.nn.relu(video @ video.T) * jax.nn.relu(text_embed @ text_embed.T)
    return jax.nn.softmax(_CSAL_SHARPNESS * jnp.where(cross < _CSAL_MIN_SIMILARITY, -100.0, cross), axis=-1)


def csal_loss(logits: jax.Array, targets: jax.Array, *, label_smoothing: float) -> jax.Array:
    """Cross-similarity alignment: logits as for VTC, soft targets [B, B] used in both directions -> scalar."""
    return _two_way_cross_entropy(logits, targets, label_smoothing)


def sample_hard_negatives(rng: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws from the softmax over the global batch, the own pair excluded.

    Args:
      rng: a key.
      logits: s / temperature, video by text [B, B]; no gradient flows.

    Returns:
      (a negative video for each text [B], a negative text for each video [B]), indices.
    """
    logits = jnp.where(jnp.eye(logits.shape[0], dtype=bool), _SELF, jax.lax.stop_gradient(logits))
    video_rng, text_rng = jax.random.split(rng)
    return jax.random.categorical(video_rng, logits.T), jax.random.categorical(text_rng, logits)


def vtm_loss(match_logits: jax.Array) -> jax.Array:
    """Matching loss over rows (B positives, B with another video, B with another text): [3B, 2] -> scalar."""
    labels = (jnp.arange(match_logits.shape[0]) < match_logits.shape[0] // 3).astype(jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(match_logits, labels).mean()


def vtg_loss(
    logits: jax.Array, input_ids: jax.Array, attention_mask: jax.Array, *, label_smoothing: float
) -> jax.Array:
    """Next-token loss of captions, mean over the tokens that are no padding: [B, S, V], [B, S], [B, S] -> scalar."""
    logits, labels, mask = logits[:, :-1], input_ids[:, 1:], attention_mask[:, 1:]
    log_probs = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]  # [B, S-1]
    losses = (1.0 - label_smoothing) * nll - label_smoothing * log_probs.mean(axis=-1)
    return (losses * mask).sum() / jnp.maximum(mask.sum(), 1)


def stgt_losses(
    model: STGT,
    params: Any,
    batch: Mapping[str, jax.Array],
    rng: jax.Array,
    config: LossConfig,
    *,
    train: bool,
    negatives: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The training forward of one stage: contrastive (VTC or CSAL) + VTM + VTG.

    Args:
      model: the model.
      params: its parameters.
      batch: video [B, T, height, width, 3], input_ids and attention_mask [B, S].
      rng: a key for dropout and the hard negatives.
      config: which losses, and their weights.
      train: dropout and stochastic depth on.
      negatives: (a video for each text, a text for each video), [B] each, to use instead of drawing them.

    Returns:
      (total loss, {"loss", "loss_contrastive", "loss_vtm", "loss_vtg", "accuracy_v2t", "accuracy_t2v",
      "accuracy_vtm", "temperature"}), scalars.
    """
    negative_rng, *method_rngs = jax.random.split(rng, 5)
    ids, mask = batch["input_ids"], batch["attention_mask"]

    def apply(method: str, *inputs: Any) -> Any:
        rngs = {"dropout": method_rngs[("encode_video", "encode_text", "match", "decode").index(method)]}
        return model.apply({"params": params}, *inputs, train=train, method=method, rngs=rngs)

    video = apply("encode_video", batch["video"])
    text = apply("encode_text", ids, mask)

    logits = similarity(video["video_embed"], text["text_embed"]) / params["temperature"]  # [B, B]
    if config.contrastive == "csal":
        targets = csal_targets(video["video_embed"], text["text_embed"])
        targets = jax.lax.stop_gradient(targets) if config.csal_stop_gradient else targets
        loss_contrastive = csal_loss(logits, targets, label_smoothing=config.csal_label_smoothing)
    else:
        loss_contrastive = vtc_loss(logits, label_smoothing=config.vtc_label_smoothing)

    negative_video, negative_text = negatives or sample_hard_negatives(negative_rng, logits)
    graph_tokens = video["graph_tokens"]
    match_logits = apply(
        "match",
        jnp.concatenate([graph_tokens, graph_tokens[negative_video], graph_tokens]),
        jnp.concatenate([ids, ids, ids[negative_text]]),
        jnp.concatenate([mask, mask, mask[negative_text]]),
    )
    loss_vtm = vtm_loss(match_logits)

    decoder_ids = ids.at[:, 0].set(model.config.qformer.dec_token_id)
    decoder_logits = apply("decode", video["query_cache"], decoder_ids, mask)
    loss_vtg = vtg_loss(decoder_logits, ids, mask, label_smoothing=config.vtg_label_smoothing)

    loss = loss_contrastive + config.vtm_weight * loss_vtm + config.vtg_weight * loss_vtg
    pair = jnp.arange(ids.shape[0])
    return loss, {
        "loss": loss,
        "loss_contrastive": loss_contrastive,
        "loss_vtm": loss_vtm,
        "loss_vtg": loss_vtg,
        "accuracy_v2t": (logits.argmax(axis=1) == pair).mean(),
        "accuracy_t2v": (logits.argmax(axis=0) == pair).mean(),
        "accuracy_vtm": (match_logits.argmax(axis=1) == (jnp.arange(3 * ids.shape[0]) < ids.shape[0])).mean(),
        "temperature": params["temperature"],
    }


def _two_way_cross_entropy(logits: jax.Array, targets: jax.Array, label_smoothing: float) -> jax.Array:
    """Mean of video-to-text (rows) and text-to-video (columns) cross entropy with the same targets."""
    targets = (1.0 - label_smoothing) * targets + label_smoothing / targets.shape[-1]
    v2t = optax.softmax_cross_entropy(logits, targets).mean()
    t2v = optax.softmax_cross_entropy(logits.T, targets).mean()
    return (v2t + t2v) / 2.0
