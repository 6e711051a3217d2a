"""VTC and CSAL on the global batch, and the hard negatives drawn from it (paper section 3.3, docs/model.md section 4).

Every video meets every text, but no device ever holds all their similarities, still less those of every query: each
compares its own videos with all texts, a block of texts at a time, and keeps of a block what its rows and columns come
to (`Reading`). Readings of the parts of a row or column merge into that of the whole. Letters: B clips, b those of one
device, Q queries, E alignment width.
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
from stgt_jax.models.layers import normalize
from stgt_jax.sharding import mesh_axes, mesh_to_split_over

_NEVER = -1e30  # a logit whose softmax is 0
_CSAL_MIN_SIMILARITY = 0.05
_CSAL_SHARPNESS = 5.0
_BLOCK_SIZE = 2**24  # similarities of single queries held at once, 64 MB


class Best(NamedTuple):
    """The largest of some numbers and where it is, [N] each."""

    value: jax.Array
    clip: jax.Array


class Reading(NamedTuple):
    """What the logits of each of N clips come to, against all clips or a part of them; [N] each."""

    log_sum_exp: jax.Array
    total: jax.Array
    best: Best
    negative: Best  # drawn from their softmax without the own pair, by the Gumbel-max trick
    target_log_sum_exp: jax.Array  # of the energies whose softmax the targets are
    target_mean: jax.Array  # of the logits, weighted by the targets


class Contrast(NamedTuple):
    """The contrastive loss and what else is read from the same similarities."""

    loss: jax.Array  # []
    negative_video: jax.Array  # [B], for each text
    negative_text: jax.Array  # [B], for each video
    accuracy_v2t: jax.Array  # [], the share of videos whose own text is the best
    accuracy_t2v: jax.Array  # []


@jax.custom_vjp
def similarity(video_embed: jax.Array, text_embed: jax.Array) -> jax.Array:
    """s(i, j) = max over queries of v[i, q] . t[j]: [Bv, Q, E], [Bt, E] -> [Bv, Bt].

    The gradient remembers which query was the best (the first of equals), not the similarities of all of them.
    """
    return _similarity_forward(video_embed, text_embed)[0]


def _similarity_forward(video_embed, text_embed):
    by_query = jnp.einsum("vqe,te->vtq", video_embed, text_embed)
    best = by_query.argmax(axis=-1).astype(np.min_scalar_type(by_query.shape[-1]))
    return by_query.max(axis=-1), (video_embed, text_embed, checkpoint_name(best, "best_query"))


def _similarity_backward(saved, gradient):
    video_embed, text_embed, best = saved
    of_query = jax.nn.one_hot(best, video_embed.shape[1], dtype=gradient.dtype) * gradient[..., None]  # [Bv, Bt, Q]
    of_video = jnp.einsum("vtq,te->vqe", of_query, text_embed)
    return of_video, jnp.einsum("vtq,vqe->te", of_query, video_embed)


similarity.defvjp(_similarity_forward, _similarity_backward)


def contrast(
    video_embed: jax.Array, text_embed: jax.Array, temperature: jax.Array, rng: jax.Array, config: LossConfig
) -> Contrast:
    """The contrastive loss of the global batch: VTC, or CSAL with its soft targets.

    Args:
      video_embed: [B, Q, E] of norm 1, float32; split over the mesh in use by clips, like `text_embed`.
      text_embed: [B, E] of norm 1, float32.
      temperature: [], which similarities are divided by.
      rng: a key, for the negatives: what is drawn for a clip does not depend on the mesh.
      config: which loss, its label smoothing, and whether CSAL's targets have a gradient.
    """
    read = functools.partial(_read, config=config)
    mesh, batch = mesh_to_split_over(), video_embed.shape[0]
    if mesh is not None and (axes := mesh_axes(mesh, "clip", batch)):
        by_clip = P(axes)
        read = jax.shard_map(
            functools.partial(read, axes=axes),
            in_specs=(by_clip, by_clip, P(), P()),
            out_specs=by_clip,
            check_vma=False,
        )
    by_video, by_text = read(video_embed, text_embed, temperature, rng)

    smoothing = config.csal_label_smoothing if config.contrastive == "csal" else config.vtc_label_smoothing

    def cross_entropy(reading: Reading) -> jax.Array:
        expected = (1.0 - smoothing) * reading.target_mean + smoothing * reading.total / batch
        return (reading.log_sum_exp - expected).mean()

    own = jnp.arange(batch)
    return Contrast(
        loss=(cross_entropy(by_video) + cross_entropy(by_text)) / 2.0,
        negative_video=by_text.negative.clip,
        negative_text=by_video.negative.clip,
        accuracy_v2t=(by_video.best.clip == own).mean(),
        accuracy_t2v=(by_text.best.clip == own).mean(),
    )


def _read(
    video_embed: jax.Array,
    text_embed: jax.Array,
    temperature: jax.Array,
    rng: jax.Array,
    *,
    config: LossConfig,
    axes: tuple[str, ...] = (),
) -> tuple[Reading, Reading]:
    """This device's part, [b, Q, E] and [b, E] -> the readings of its videos against all texts, and of its texts."""
    local, num_queries = video_embed.shape[:2]
    videos = jnp.arange(local) + (local * jax.lax.axis_index(axes) if axes else 0)
    csal = config.contrastive == "csal"
    own = [text_embed, normalize(video_embed.mean(axis=1))] if csal else [text_embed]  # [b, E] each
    others = [_from_all(x, axes) for x in own]  # [B, E] each
    batch = others[0].shape[0]
    size = _block_length(batch, local * num_queries)
    text_key, video_key = jax.random.split(rng)

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names("logits", "best_query"))
    def read_block(block: tuple[jax.Array, list[jax.Array]]) -> tuple[Reading, Reading]:
        texts, others = block
        logits = checkpoint_name(similarity(video_embed, others[0]) / temperature, "logits")  # [b, size]
        own_pair = videos[:, None] == texts
        if csal:
            energies = csal_energies(own[1] @ others[1].T, own[0] @ others[0].T)
            energies = jax.lax.stop_gradient(energies) if config.csal_stop_gradient else energies
        else:
            energies = jnp.where(own_pair, 0.0, _NEVER)
        pairs = jnp.where(own_pair, _NEVER, jax.lax.stop_gradient(logits))
        return (
            _reading(logits, energies, pairs + _gumbel(text_key, videos, texts), texts),
            _reading(logits.T, energies.T, (pairs + _gumbel(video_key, videos, texts)).T, videos),
        )

    blocks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), (jnp.arange(batch), others))
    by_video, by_text = jax.lax.map(read_block, blocks)  # [blocks, b], [blocks, size]
    return _merged(by_video), _merged(jax.tree.map(lambda x: _to_owners(x.reshape(-1), axes), by_text))


def csal_energies(video_similarity: jax.Array, text_similarity: jax.Array) -> jax.Array:
    """CSAL's targets are the softmax of these: 5 R, R = relu(u u^T) relu(t t^T), entries of R below 0.05 being -100."""
    cross = jax.nn.relu(video_similarity) * jax.nn.relu(text_similarity)
    return _CSAL_SHARPNESS * jnp.where(cross < _CSAL_MIN_SIMILARITY, -100.0, cross)


def _reading(logits: jax.Array, energies: jax.Array, noisy: jax.Array, columns: jax.Array) -> Reading:
    """Of rows [N, K]; `columns` [K] says which clips the logits are with."""
    return Reading(
        log_sum_exp=jax.nn.logsumexp(logits, axis=1),
        total=logits.sum(axis=1),
        best=Best(jax.lax.stop_gradient(logits).max(axis=1), columns[logits.argmax(axis=1)]),
        negative=Best(noisy.max(axis=1), columns[noisy.argmax(axis=1)]),
        target_log_sum_exp=jax.nn.logsumexp(energies, axis=1),
        target_mean=(jax.nn.softmax(energies, axis=1) * logits).sum(axis=1),
    )


def _merged(parts: Reading) -> Reading:
    """[parts, N] -> [N]; of equal values the first part's is the best."""

    def best(parts: Best) -> Best:
        first = parts.value.argmax(axis=0)[None]
        return Best(*(jnp.take_along_axis(x, first, axis=0)[0] for x in parts))

    weights = jax.nn.softmax(parts.target_log_sum_exp, axis=0)
    return Reading(
        log_sum_exp=jax.nn.logsumexp(parts.log_sum_exp, axis=0),
        total=parts.total.sum(axis=0),
        best=best(parts.best),
        negative=best(parts.negative),
        target_log_sum_exp=jax.nn.logsumexp(parts.target_log_sum_exp, axis=0),
        target_mean=(weights * parts.target_mean).sum(axis=0),
    )


def _gumbel(key: jax.Array, videos: jax.Array, texts: jax.Array) -> jax.Array:
    """Noise for each pair, [len(videos), len(texts)], which depends on the key and the pair alone."""

    def of_pair(video: jax.Array, text: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, video), text))

    return jax.vmap(jax.vmap(of_pair, (None, 0)), (0, None))(videos, texts)


def _block_length(batch: int, width: int) -> int:
    """The most columns that divide the batch and, `width` similarities each, fit into a block."""
    return max(n for n in range(1, batch + 1) if batch % n == 0 and n <= max(1, _BLOCK_SIZE // width))


def _from_all(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """[b, ...] -> [B, ...] of all devices."""
    return jax.lax.all_gather(x, axes, tiled=True) if axes else x


def _to_owners(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """What this device has for every clip, [B], against what every device has for this one's: [devices, b]."""
    if not axes:
        return x[None]
    devices = math.prod(jax.lax.axis_size(axis) for axis in axes)
    return jax.lax.all_to_all(x.reshape(devices, -1), axes, split_axis=0, concat_axis=0)
