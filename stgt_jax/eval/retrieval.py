"""Retrieval with a trained model: score a gallery, re-rank the best candidates by matching (docs/model.md section 5).

An `Encoder` encodes every video and every caption once.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stgt_jax.encoder import Encoder, score_similarity
from stgt_jax.errors import STGTError
from stgt_jax.eval.metrics import format_metrics, retrieval_metrics, twin_metrics

NOT_A_CANDIDATE = -100.0  # the re-ranked score of everything beyond the top k


@dataclass(frozen=True)
class RetrievalResult:
    """Scores of a gallery of V videos with C captions. Rows and columns are in the order in which they were read."""

    similarity: np.ndarray  # [V, C] float32
    text_to_video: np.ndarray  # [V, C] float32, re-ranked: similarity + P(match) of each caption's top videos
    video_to_text: np.ndarray  # [V, C] float32, re-ranked: of each video's top captions
    video_of_text: np.ndarray  # [C] int, the row of the caption's own video
    video_ids: tuple[str, ...]  # V
    captions: tuple[str, ...]  # C
    groups: tuple[str, ...]  # C; captions of the same group differ only in time order; empty for no group
    k_test: int  # number of candidates that were re-ranked for each query
    frames: Mapping[str, Any] = field(default_factory=dict)  # how they were stored and chosen, for the results file

    @property
    def metrics(self) -> dict[str, float]:
        """`retrieval_metrics` by similarity alone."""
        return retrieval_metrics(self.similarity, self.video_of_text)

    @property
    def reranked_metrics(self) -> dict[str, float]:
        """`retrieval_metrics` after re-ranking. A right answer that is not among the candidates ranks last."""
        return retrieval_metrics(self.text_to_video, self.video_of_text, self.video_to_text)

    def to_dict(self) -> dict[str, Any]:
        """Returns all metrics, as plain numbers for JSON; those of time order are NaN if no caption has a twin."""
        return {
            "num_videos": len(self.video_ids),
            "num_texts": len(self.captions),
            "k_test": self.k_test,
            "similarity": self.metrics,
            "reranked": self.reranked_metrics,
            "time_order": time_order_metrics(self),
            **({"frames": dict(self.frames)} if self.frames else {}),
        }


def evaluate_retrieval(encoder: Encoder, batches: Iterable[Mapping[str, Any]], *, k_test: int = 32) -> RetrievalResult:
    """Scores every caption against every video of the batches.

    Args:
      encoder: of the model.
      batches: evaluation batches of any size B: video [B, T, H, W, 3], valid [B] bool, video_id and group [B] str; and
        of their captions, in any number C: input_ids and attention_mask [C, S], caption [C] str, row [C], the clip that
        each belongs to. All processes of a run must read the same batches.
      k_test: number of candidates to re-rank for each query; of a smaller gallery, all.

    Raises:
      STGTError: there is no valid record, a video has no caption, or k_test is not positive.
    """
    if k_test < 1:
        raise STGTError(f"k_test={k_test} must be at least 1")
    gallery = _Gallery()
    clips = gallery.read(batches)
    first = next(clips, None)
    if first is None:
        raise STGTError("the evaluation data hold no clip; check the split's shard set")
    videos = encoder.encode_videos(itertools.chain([first], clips))
    input_ids, attention_mask = np.stack(gallery.input_ids), np.stack(gallery.attention_mask)
    scores = score_similarity(videos.embed, encoder.encode_texts(input_ids, attention_mask))  # [V, C]
    by_text = _candidates(scores.T, k_test).T  # [V, C] bool
    by_video = _candidates(scores, k_test)
    pairs = np.argwhere(by_text | by_video)  # [P, 2]: video, text; a pair that both directions want is matched once
    matched = scores.copy()
    matched[tuple(pairs.T)] += encoder.match(videos, input_ids, attention_mask, pairs)
    return RetrievalResult(
        similarity=scores,
        text_to_video=np.where(by_text, matched, np.float32(NOT_A_CANDIDATE)),
        video_to_text=np.where(by_video, matched, np.float32(NOT_A_CANDIDATE)),
        video_of_text=np.array(gallery.video_of_text),
        video_ids=tuple(gallery.video_ids),
        captions=tuple(gallery.captions),
        groups=tuple(gallery.groups),
        k_test=k_test,
    )


def time_order_metrics(result: RetrievalResult) -> dict[str, dict[str, float]]:
    """Returns `twin_metrics` by similarity alone, "similarity", and after re-ranking, "reranked"."""
    owners, groups = result.video_of_text, result.groups
    return {
        "similarity": twin_metrics(result.similarity, result.similarity, owners, groups),
        "reranked": twin_metrics(result.text_to_video, result.video_to_text, owners, groups),
    }


def format_table(result: RetrievalResult) -> str:
    """Returns a text table of both directions, with and without re-ranking."""
    table = format_metrics({"": result.metrics, "re-ranked": result.reranked_metrics})
    return f"{len(result.video_ids)} videos, {len(result.captions)} captions\n{table}"


def format_time_order(results: Mapping[str, RetrievalResult]) -> str:
    """Returns a text table of the time-order metrics, a line for each named result."""
    rows = {name: time_order_metrics(result) for name, result in results.items()}
    first = next(iter(rows.values()))["similarity"]
    if not first["num_texts"]:
        return "time order: no two captions differ only in time order"
    width = max(map(len, rows))
    lines = [
        f"time order: {first['num_texts']} captions differ from another one only in the order of events; is the right"
        f" one preferred? Guessing gives {first['twin_chance']:.1f}",
        " " * width + "  right order preferred  re-ranked     R@1  re-ranked",
    ]
    for name, row in rows.items():
        plain, reranked = row["similarity"], row["reranked"]
        lines.append(
            f"{name:<{width}}{plain['twin_accuracy']:23.1f}{reranked['twin_accuracy']:11.1f}"
            f"{plain['t2v_r1']:8.1f}{reranked['t2v_r1']:11.1f}"
        )
    return "\n".join(lines)


@dataclass
class _Gallery:
    """What the batches held, except for the frames: the rows of V videos, and C texts."""

    video_ids: list[str] = field(default_factory=list)
    video_of_text: list[int] = field(default_factory=list)
    input_ids: list[np.ndarray] = field(default_factory=list)  # [S] each
    attention_mask: list[np.ndarray] = field(default_factory=list)  # [S] each
    captions: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)

    def read(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[np.ndarray]:
        """Yields the frames [T, H, W, 3] of each video, so that they are never all in memory; stores the rest."""
        for batch in batches:
            for row in np.flatnonzero(batch["valid"]):
                texts = np.flatnonzero(batch["row"] == row)
                if not len(texts):
                    raise STGTError(
                        f"video '{batch['video_id'][row]}' has no caption; retrieval needs one of each video"
                    )
                for text in texts:
                    self.video_of_text.append(len(self.video_ids))
                    self.input_ids.append(batch["input_ids"][text])
                    self.attention_mask.append(batch["attention_mask"][text])
                    self.captions.append(str(batch["caption"][text]))
                    self.groups.append(str(batch["group"][row]))
                self.video_ids.append(str(batch["video_id"][row]))
                yield np.asarray(batch["video"][row])


def _candidates(scores: np.ndarray, k: int) -> np.ndarray:
    """True at the k largest of each row of scores [queries, candidates]; among ties the first win."""
    top = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    mask = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(mask, top, True, axis=1)
    return mask
