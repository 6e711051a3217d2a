"""VTC or CSAL on the global batch, computed in blocks, and hard negatives from the same similarities.

Paper section 3.3, docs/model.md section 4.
The results equal `losses.vtc_loss` and `losses.csal_loss`, but the similarities of all videos with all texts are never
in memory at once. Each device compares its own videos with all texts, one block of texts at a time. From a block it
keeps a few numbers for each row and each column (`LogitStatistics`), such as the log-sum-exp. The numbers of the blocks
of a row are then merged into those of the whole row, as in the softmax of flash attention.
Letters: B clips, b clips of one device, K texts of a block, Q queries, E alignment width.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from stgt_jax.config import LossConfig
from stgt_jax.losses import csal_target_logits
from stgt_jax.models.layers import normalize
from stgt_jax.ops.precision import precision_of
from stgt_jax.sharding import mesh_axes, mesh_to_split_over

_NEVER = -1e30  # a logit whose softmax is 0
_BLOCK_SIZE = 2**24  # similarities of single queries held at once, 64 MB


class Maximum(NamedTuple):
    """The largest entry of each row, [N] each."""

    value: jax.Array
    clip: jax.Array  # the global index of its column


class LogitStatistics(NamedTuple):
    """What the loss needs to know of N rows of logits, over all columns or over a block of them; [N] each."""

    log_sum_exp: jax.Array
    total: jax.Array  # the sum of the logits
    best: Maximum
    negative: Maximum  # the hard negative: the largest of logit + Gumbel noise, the own pair left out
    target_log_sum_exp: jax.Array  # of the target logits; the targets are their softmax
    target_mean: jax.Array  # of the logits, weighted by the targets


class Contrast(NamedTuple):
    """The contrastive loss, and what else comes from the same similarities."""

    loss: jax.Array  # []
    negative_video: jax.Array  # [B], for each text
    negative_text: jax.Array  # [B], for each video
    accuracy_v2t: jax.Array  # [], the share of videos that are most similar to their own text
    accuracy_t2v: jax.Array  # [], the share of texts that are most similar to their own video


@jax.custom_vjp
def similarity(video_embed: jax.Array, text_embed: jax.Array) -> jax.Array:
    """s(i, j) = max over queries of v[i, q] . t[j]: [Bv, Q, E], [Bt, E] -> [Bv, Bt].

    For the gradient only the index of the best query (the first of equals) is kept, not the similarity of every query.
    """
    return _similarity_forward(video_embed, text_embed)[0]


_SimilarityResiduals = tuple[jax.Array, jax.Array, jax.Array]


def _similarity_forward(video_embed: jax.Array, text_embed: jax.Array) -> tuple[jax.Array, _SimilarityResiduals]:
    by_query = _product("vqe,te->vtq", video_embed, text_embed)
    best = by_query.argmax(axis=-1).astype(np.min_scalar_type(by_query.shape[-1]))
    return by_query.max(axis=-1), (video_embed, text_embed, checkpoint_name(best, "best_query"))


def _similarity_backward(residuals: _SimilarityResiduals, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    video_embed, text_embed, best = residuals
    of_query = jax.nn.one_hot(best, video_embed.shape[1], dtype=gradient.dtype) * gradient[..., None]  # [Bv, Bt, Q]
    of_video = _product("vtq,te->vqe", of_query, text_embed)
    return of_video, _product("vtq,vqe->te", of_query, video_embed)


similarity.defvjp(_similarity_forward, _similarity_backward)


def _product(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(equation, left, right, precision=precision_of(left.dtype))


def contrast(
    video_embed: jax.Array, text_embed: jax.Array, temperature: jax.Array, rng: jax.Array, config: LossConfig
) -> Contrast:
    """The contrastive loss of the global batch: VTC or CSAL.

    Args:
      video_embed: [B, Q, E] of norm 1, float32. On a mesh its clips are split over devices, as are those of
        `text_embed`.
      text_embed: [B, E] of norm 1, float32.
      temperature: [], which similarities are divided by.
      rng: a key for the hard negatives. What is drawn for a clip does not depend on the mesh.
      config: which loss, its label smoothing, and whether gradients flow into CSAL's targets.
    """
    compare = functools.partial(_compare, config=config)
    mesh, batch = mesh_to_split_over(), video_embed.shape[0]
    if mesh is not None and (axes := mesh_axes(mesh, "clip", batch)):
        by_clip = P(axes)
        compare = jax.shard_map(
            functools.partial(compare, axes=axes),
            in_specs=(by_clip, by_clip, P(), P()),
            out_specs=by_clip,
            check_vma=False,
        )
    of_videos, of_texts = compare(video_embed, text_embed, temperature, rng)

    smoothing = config.csal_label_smoothing if config.contrastive == "csal" else config.vtc_label_smoothing

    def cross_entropy(statistics: LogitStatistics) -> jax.Array:
        expected = (1.0 - smoothing) * statistics.target_mean + smoothing * statistics.total / batch
        return (statistics.log_sum_exp - expected).mean()

    own = jnp.arange(batch)
    return Contrast(
        loss=(cross_entropy(of_videos) + cross_entropy(of_texts)) / 2.0,
        negative_video=of_texts.negative.clip,
        negative_text=of_videos.negative.clip,
        accuracy_v2t=(of_videos.best.clip == own).mean(),
        accuracy_t2v=(of_texts.best.clip == own).mean(),
    )


def _compare(
    video_embed: jax.Array,
    text_embed: jax.Array,
    temperature: jax.Array,
    rng: jax.Array,
    *,
    config: LossConfig,
    axes: tuple[str, ...] = (),
) -> tuple[LogitStatistics, LogitStatistics]:
    """Compares this device's clips, [b, Q, E] and [b, E], with those of all devices on the mesh axes `axes`.

    Returns the statistics of its videos (over all texts) and of its texts (over all videos), [b] each.
    """
    local, num_queries = video_embed.shape[:2]
    videos = jnp.arange(local) + (local * jax.lax.axis_index(axes) if axes else 0)  # [b], global indices
    csal = config.contrastive == "csal"
    own = [text_embed, normalize(video_embed.mean(axis=1))] if csal else [text_embed]  # [b, E] each
    everyone = [_gather(x, axes) for x in own]  # [B, E] each
    batch = everyone[0].shape[0]
    size = _block_length(batch, local * num_queries)
    text_key, video_key = jax.random.split(rng)

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names("logits", "best_query"))
    def compare_block(block: tuple[jax.Array, list[jax.Array]]) -> tuple[LogitStatistics, LogitStatistics]:
        texts, others = block  # [K], [K, E] each
        logits = checkpoint_name(similarity(video_embed, others[0]) / temperature, "logits")  # [b, K]
        own_pair = videos[:, None] == texts
        if csal:
            alike = [_product("ie,je->ij", own[i], others[i]) for i in (1, 0)]
            targets = csal_target_logits(alike[0], alike[1], config.csal_sharpness)
            targets = jax.lax.stop_gradient(targets) if config.csal_stop_gradient else targets
        else:
            targets = jnp.where(own_pair, 0.0, _NEVER)
        pairs = jnp.where(own_pair, _NEVER, jax.lax.stop_gradient(logits))
        return (
            _row_statistics(logits, targets, pairs + _pair_noise(text_key, videos, texts), texts),
            _row_statistics(logits.T, targets.T, (pairs + _pair_noise(video_key, videos, texts)).T, videos),
        )

    blocks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), (jnp.arange(batch), everyone))
    of_videos, of_texts = jax.lax.map(compare_block, blocks)  # [blocks, b], [blocks, K]
    return _merge(of_videos), _merge(jax.tree.map(lambda x: _send_to_owners(x.reshape(-1), axes), of_texts))


def _row_statistics(
    logits: jax.Array, target_logits: jax.Array, noisy_logits: jax.Array, columns: jax.Array
) -> LogitStatistics:
    """Of arrays [N, K]; `columns` [K] are the global indices of the clips in the columns."""
    return LogitStatistics(
        log_sum_exp=jax.nn.logsumexp(logits, axis=1),
        total=logits.sum(axis=1),
        best=Maximum(jax.lax.stop_gradient(logits).max(axis=1), columns[logits.argmax(axis=1)]),
        negative=Maximum(noisy_logits.max(axis=1), columns[noisy_logits.argmax(axis=1)]),
        target_log_sum_exp=jax.nn.logsumexp(target_logits, axis=1),
        target_mean=(jax.nn.softmax(target_logits, axis=1) * logits).sum(axis=1),
    )


def _merge(parts: LogitStatistics) -> LogitStatistics:
    """The statistics of whole rows from those of their parts, [parts, N] -> [N]; of equal maxima the first wins."""

    def largest(maxima: Maximum) -> Maximum:
        first = maxima.value.argmax(axis=0)[None]
        return Maximum(*(jnp.take_along_axis(x, first, axis=0)[0] for x in maxima))

    weights = jax.nn.softmax(parts.target_log_sum_exp, axis=0)
    return LogitStatistics(
        log_sum_exp=jax.nn.logsumexp(parts.log_sum_exp, axis=0),
        total=parts.total.sum(axis=0),
        best=largest(parts.best),
        negative=largest(parts.negative),
        target_log_sum_exp=jax.nn.logsumexp(parts.target_log_sum_exp, axis=0),
        target_mean=(weights * parts.target_mean).sum(axis=0),
    )


def _pair_noise(key: jax.Array, videos: jax.Array, texts: jax.Array) -> jax.Array:
    """Gumbel noise for each pair, [len(videos), len(texts)]. It depends on nothing but the key and the pair."""

    def of_pair(video: jax.Array, text: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, video), text))

    return jax.vmap(jax.vmap(of_pair, (None, 0)), (0, None))(videos, texts)


def _block_length(batch: int, width: int) -> int:
    """The largest number of columns that divides the batch and, at `width` similarities a column, fits in a block."""
    return max(n for n in range(1, batch + 1) if batch % n == 0 and n <= max(1, _BLOCK_SIZE // width))


def _gather(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """[b, ...] -> [B, ...] of all devices."""
    return jax.lax.all_gather(x, axes, tiled=True) if axes else x


def _send_to_owners(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Exchanges this device's numbers for the clips of all devices, [B], for all devices' numbers for its clips.

    [B] -> [devices, b].
    """
    if not axes:
        return x[None]
    devices = math.prod(jax.lax.axis_size(axis) for axis in axes)
    return jax.lax.all_to_all(x.reshape(devices, -1), axes, split_axis=0, concat_axis=0)
