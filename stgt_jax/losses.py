"""The losses of both stages as formulas of whole arrays: VTC, CSAL, VTM and VTG.

Paper section 3.3, docs/model.md section 4.
`stgt_jax.contrastive` computes VTC and CSAL of a large batch block by block; the formulas here say what it computes.
Letters: B clips, S text length, V vocabulary.
"""

import jax
import jax.numpy as jnp
import optax

_CSAL_MIN_SIMILARITY = 0.05


def vtc_loss(logits: jax.Array, *, label_smoothing: float) -> jax.Array:
    """Video-text contrastive loss: the target of each clip is its own pair (docs/model.md section 4.2).

    Args:
      logits: [B, B], the similarity of each video (row) to each text (column), divided by the temperature.
      label_smoothing: the share of the target that all pairs get alike.
    """
    return _mean_of_both_directions(logits, jnp.eye(len(logits)), label_smoothing)


def csal_loss(
    logits: jax.Array,
    video_similarity: jax.Array,
    text_similarity: jax.Array,
    *,
    label_smoothing: float,
    sharpness: float = 5.0,
) -> jax.Array:
    """Cross-similarity alignment loss: clips alike in video and text share the target (docs/model.md section 4.3).

    Args:
      logits: [B, B], as for `vtc_loss`.
      video_similarity: [B, B], u u^T, where u are the videos' embeddings averaged over queries and normalised.
      text_similarity: [B, B], t t^T, where t are the texts' embeddings.
      label_smoothing: as for `vtc_loss`.
      sharpness: as for `csal_target_logits`.
    """
    targets = jax.nn.softmax(csal_target_logits(video_similarity, text_similarity, sharpness), axis=1)
    return _mean_of_both_directions(logits, targets, label_smoothing)


def csal_target_logits(video_similarity: jax.Array, text_similarity: jax.Array, sharpness: float = 5.0) -> jax.Array:
    """The softmax of these is CSAL's target: 5 R, with R = relu(u u^T) relu(t t^T) and -100 where R < 0.05.

    `sharpness` takes the place of 5: the larger it is, the more of the target a pair of high R gets.
    """
    cross = jax.nn.relu(video_similarity) * jax.nn.relu(text_similarity)
    return sharpness * jnp.where(cross < _CSAL_MIN_SIMILARITY, -100.0, cross)


def _mean_of_both_directions(logits: jax.Array, targets: jax.Array, label_smoothing: float) -> jax.Array:
    """Cross-entropy of videos to texts and of texts to videos, which have the same targets."""
    targets = (1.0 - label_smoothing) * targets + label_smoothing / len(targets)
    video_to_text = optax.softmax_cross_entropy(logits, targets).mean()
    text_to_video = optax.softmax_cross_entropy(logits.T, targets).mean()
    return (video_to_text + text_to_video) / 2.0


def vtm_loss(match_logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Video-text matching loss: logits [3B, 2] and labels [3B], 1 for a match -> scalar (docs/model.md section 4.4)."""
    return optax.softmax_cross_entropy_with_integer_labels(match_logits, labels).mean()


def vtg_loss(
    logits: jax.Array, input_ids: jax.Array, attention_mask: jax.Array, *, label_smoothing: float
) -> jax.Array:
    """Video-grounded text generation loss (docs/model.md section 4.5): cross-entropy of each next token.

    The mean over all tokens that are not padding: [B, S, V], ids and mask [B, S] -> scalar.
    """
    logits, labels, mask = logits[:, :-1], input_ids[:, 1:], attention_mask[:, 1:]
    log_probs = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]  # [B, S-1]
    losses = (1.0 - label_smoothing) * nll - label_smoothing * log_probs.mean(axis=-1)
    return (losses * mask).sum() / jnp.maximum(mask.sum(), 1)
