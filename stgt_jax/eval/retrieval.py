"""Retrieval with a trained model: encode a gallery, score it, re-rank the best candidates by matching
(docs/model.md section 5).

`evaluate_retrieval` reads evaluation batches once, encodes every video and every caption once, and re-ranks in batches
of fixed shape. What is jitted stays compiled between calls for the same model and gallery size, so a validation during
training costs its computation only. All hosts must read the same batches.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from stgt_jax.contrastive import similarity
from stgt_jax.errors import STGTError
from stgt_jax.eval.metrics import format_metrics, retrieval_metrics, twin_metrics

Batch = Mapping[str, Any]
NOT_A_CANDIDATE = -100.0  # the re-ranked score of everything beyond the top k


@dataclass(frozen=True)
class RetrievalResult:
    """Scores and figures of one gallery of V videos and C captions; rows and columns in the order they were read."""

    similarity: np.ndarray  # [V, C] float32
    text_to_video: np.ndarray  # [V, C] float32, re-ranked: similarity + P(match) of each caption's top videos
    video_to_text: np.ndarray  # [V, C] float32, re-ranked: of each video's top captions
    video_of_text: np.ndarray  # [C] int, the row of the caption's own video
    video_ids: tuple[str, ...]  # V
    captions: tuple[str, ...]  # C
    groups: tuple[str, ...]  # C; captions of one group differ only in time order; empty for none
    k_test: int  # candidates re-ranked for each query

    @property
    def metrics(self) -> dict[str, float]:
        """Both directions by similarity alone; see `retrieval_metrics`."""
        return retrieval_metrics(self.similarity, self.video_of_text)

    @property
    def reranked_metrics(self) -> dict[str, float]:
        """Both directions after re-ranking; a video that is no candidate of its caption counts as the last."""
        return retrieval_metrics(self.text_to_video, self.video_of_text, self.video_to_text)

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures, plain numbers; the time-order shares are NaN where no caption has a twin."""
        return {
            "num_videos": len(self.video_ids),
            "num_texts": len(self.captions),
            "k_test": self.k_test,
            "similarity": self.metrics,
            "reranked": self.reranked_metrics,
            "time_order": time_order_metrics(self),
        }


def evaluate_retrieval(
    model: nn.Module,
    params: Mapping[str, Any],
    batches: Iterable[Batch],
    *,
    k_test: int = 32,
    rerank_batch_size: int = 64,
    sharding: jax.sharding.NamedSharding | None = None,
) -> RetrievalResult:
    """Scores every caption against every video of the batches.

    Args:
      model: an STGT. params: its parameters.
      batches: evaluation batches of one size B: video [B, T, H, W, 3], input_ids and attention_mask [B, S],
        valid [B] bool, video_id, caption, group [B] str. Records with the same video_id are one gallery video
        (the first one's frames) with several captions.
      k_test: candidates of each query that are re-ranked; the whole gallery where that is smaller.
      rerank_batch_size: video-text pairs matched at a time.
      sharding: of a leading batch axis, to spread the work over a mesh; B and rerank_batch_size must divide by it.

    Raises:
      STGTError: there is no valid record, or an option is not positive.
    """
    if k_test < 1 or rerank_batch_size < 1:
        raise STGTError(f"k_test={k_test} and rerank_batch_size={rerank_batch_size} must be at least 1")
    with contextlib.nullcontext() if sharding is None else jax.set_mesh(cast(Mesh, sharding.mesh)):
        gallery = _read_gallery(model, params, batches, sharding)
        scores = _similarity_matrix(gallery)
        by_text = _candidates(scores.T, k_test).T  # [V, C] bool
        by_video = _candidates(scores, k_test)
        matched = scores + _match_pairs(model, params, gallery, by_text | by_video, rerank_batch_size, sharding)
    return RetrievalResult(
        similarity=scores,
        text_to_video=np.where(by_text, matched, np.float32(NOT_A_CANDIDATE)),
        video_to_text=np.where(by_video, matched, np.float32(NOT_A_CANDIDATE)),
        video_of_text=gallery.video_of_text,
        video_ids=gallery.video_ids,
        captions=gallery.captions,
        groups=gallery.groups,
        k_test=k_test,
    )


def time_order_metrics(result: RetrievalResult) -> dict[str, dict[str, float]]:
    """The time-order control, see `twin_metrics`: by similarity alone and after re-ranking."""
    owners, groups = result.video_of_text, result.groups
    return {
        "similarity": twin_metrics(result.similarity, result.similarity, owners, groups),
        "reranked": twin_metrics(result.text_to_video, result.video_to_text, owners, groups),
    }


def format_table(result: RetrievalResult) -> str:
    """Returns the plain-text table of both directions, with and without re-ranking."""
    table = format_metrics({"": result.metrics, "re-ranked": result.reranked_metrics})
    return f"{len(result.video_ids)} videos, {len(result.captions)} captions\n{table}"


def format_time_order(results: Mapping[str, RetrievalResult]) -> str:
    """Returns the plain-text table of the time-order control, one line for each named result."""
    rows = {name: time_order_metrics(result) for name, result in results.items()}
    first = next(iter(rows.values()))["similarity"]
    if not first["num_texts"]:
        return "time order: no caption has a twin that differs only in time order"
    width = max(map(len, rows))
    lines = [
        f"time order: {first['num_texts']} captions with a twin; chance {first['twin_chance']:.1f}",
        " " * width + "  own before twins  re-ranked     R@1  re-ranked",
    ]
    for name, row in rows.items():
        plain, reranked = row["similarity"], row["reranked"]
        lines.append(
            f"{name:<{width}}{plain['twin_accuracy']:18.1f}{reranked['twin_accuracy']:11.1f}"
            f"{plain['t2v_r1']:8.1f}{reranked['t2v_r1']:11.1f}"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class _Gallery:
    video_embed: np.ndarray  # [V, Q, E]
    text_embed: np.ndarray  # [C, E]
    graph_tokens: jax.Array  # [V or more, M, D], on the devices; rows beyond V are padding
    input_ids: np.ndarray  # [C, S]
    attention_mask: np.ndarray  # [C, S]
    video_of_text: np.ndarray  # [C]
    video_ids: tuple[str, ...]
    captions: tuple[str, ...]
    groups: tuple[str, ...]


def _read_gallery(model: nn.Module, params: Any, batches: Iterable[Batch], sharding: Any) -> _Gallery:
    """Encodes each video as its frames come by, in full batches, so that frames are never all in memory."""
    row_of_video: dict[str, int] = {}
    waiting: list[np.ndarray] = []
    encoded: list[tuple[np.ndarray, jax.Array]] = []
    texts: dict[str, list[Any]] = {k: [] for k in ("input_ids", "attention_mask", "video_id", "caption", "group")}
    batch_size = 0

    def encode_waiting() -> None:
        out = _encode_video(model, params, _place(_padded(np.stack(waiting), batch_size), sharding))
        encoded.append((_to_host(out[0])[: len(waiting)], out[1]))
        waiting.clear()

    for batch in batches:
        batch_size = batch_size or len(batch["valid"])
        for row in np.flatnonzero(batch["valid"]):
            for key, values in texts.items():
                values.append(batch[key][row])
            video_id = str(batch["video_id"][row])
            if video_id not in row_of_video:
                row_of_video[video_id] = len(row_of_video)
                waiting.append(np.asarray(batch["video"][row]))
            if len(waiting) == batch_size:
                encode_waiting()
    if not row_of_video:
        raise STGTError("the evaluation data hold no clip; check the split's shard set")
    if waiting:
        encode_waiting()
    input_ids, attention_mask = np.stack(texts["input_ids"]), np.stack(texts["attention_mask"])
    return _Gallery(
        video_embed=np.concatenate([embed for embed, _ in encoded]),
        text_embed=_encode_texts(model, params, input_ids, attention_mask, batch_size, sharding),
        graph_tokens=jnp.concatenate([tokens for _, tokens in encoded]),
        input_ids=input_ids,
        attention_mask=attention_mask,
        video_of_text=np.array([row_of_video[str(video_id)] for video_id in texts["video_id"]]),
        video_ids=tuple(row_of_video),
        captions=tuple(map(str, texts["caption"])),
        groups=tuple(map(str, texts["group"])),
    )


def _encode_texts(
    model: nn.Module, params: Any, input_ids: np.ndarray, attention_mask: np.ndarray, batch_size: int, sharding: Any
) -> np.ndarray:
    embeds = []
    for rows in _chunks(len(input_ids), batch_size):
        ids, mask = (_place(_padded(x[rows], batch_size), sharding) for x in (input_ids, attention_mask))
        embeds.append(_to_host(_encode_text(model, params, ids, mask))[: len(rows)])
    return np.concatenate(embeds)


def _similarity_matrix(gallery: _Gallery, chunk: int = 32) -> np.ndarray:
    """[V, C], a few videos at a time: the queries' own similarities would take Q times the memory."""
    rows = [
        _to_host(_similarity(_padded(gallery.video_embed[rows], chunk), gallery.text_embed))[: len(rows)]
        for rows in _chunks(len(gallery.video_embed), chunk)
    ]
    return np.concatenate(rows)


def _candidates(scores: np.ndarray, k: int) -> np.ndarray:
    """True at the k largest of each row of scores [queries, candidates]; among ties the first win."""
    top = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    mask = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(mask, top, True, axis=1)
    return mask


def _match_pairs(
    model: nn.Module, params: Any, gallery: _Gallery, wanted: np.ndarray, batch_size: int, sharding: Any
) -> np.ndarray:
    """P(match) [V, C] where wanted, 0 elsewhere. A pair that both directions want is matched once."""
    probability = np.zeros(wanted.shape, dtype=np.float32)
    pairs = np.argwhere(wanted)  # [num_pairs, 2]: video, caption
    for rows in _chunks(len(pairs), batch_size):
        videos, texts = _padded(pairs[rows], batch_size).T
        inputs = (_place(x, sharding) for x in (videos, gallery.input_ids[texts], gallery.attention_mask[texts]))
        matched = _to_host(_match(model, params, gallery.graph_tokens, *inputs))
        probability[tuple(pairs[rows].T)] = matched[: len(rows)]
    return probability


@partial(jax.jit, static_argnums=0)
def _encode_video(model: nn.Module, params: Any, video: jax.Array) -> tuple[jax.Array, jax.Array]:
    out: Any = model.apply({"params": params}, video, method="encode_video")
    return out["video_embed"].astype(jnp.float32), out["graph_tokens"]


@partial(jax.jit, static_argnums=0)
def _encode_text(model: nn.Module, params: Any, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
    out: Any = model.apply({"params": params}, input_ids, attention_mask, method="encode_text")
    return out["text_embed"].astype(jnp.float32)


@partial(jax.jit, static_argnums=0)
def _match(
    model: nn.Module, params: Any, graph_tokens: jax.Array, videos: jax.Array, ids: jax.Array, mask: jax.Array
) -> jax.Array:
    logits: Any = model.apply({"params": params}, graph_tokens[videos], ids, mask, method="match")
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)[:, 1]  # label 1 is "match"


_similarity = jax.jit(similarity)


def _chunks(length: int, size: int) -> Sequence[range]:
    return [range(start, min(start + size, length)) for start in range(0, length, size)]


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    """Repeats the last row up to `size` rows, so that every batch has one shape."""
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def _place(array: np.ndarray, sharding: Any) -> Any:
    return array if sharding is None else jax.device_put(array, sharding)


def _to_host(array: jax.Array) -> np.ndarray:
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
