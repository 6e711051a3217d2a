"""Retrieval metrics from score matrices: recalls, ranks, and whether time order is seen (docs/model.md section 5).

Everything here is numpy on finished scores [V, C] of V gallery videos and C captions. Ties count against the model: a
candidate with the same score as the right one ranks before it. Recalls and accuracies are in percent, ranks start at 1.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from stgt_jax.errors import STGTError

RECALLS = (1, 5, 10)


def text_to_video_ranks(scores: np.ndarray, video_of_text: np.ndarray) -> np.ndarray:
    """Returns the rank [C] of each caption's own video among all V videos, from scores [V, C]."""
    own = scores[video_of_text, np.arange(scores.shape[1])]  # [C]
    return np.count_nonzero(~(scores < own), axis=0)  # not `>=`: a NaN counts against the model, too


def video_to_text_ranks(scores: np.ndarray, video_of_text: np.ndarray) -> np.ndarray:
    """Returns the rank [V] of each video's best-scored own caption among it and all captions of other videos."""
    is_own = video_of_text[None, :] == np.arange(scores.shape[0])[:, None]  # [V, C]
    best_own = np.where(is_own, scores, -np.inf).max(axis=1, keepdims=True)  # [V, 1]
    return 1 + np.count_nonzero(~(scores < best_own) & ~is_own, axis=1)


def retrieval_metrics(
    similarity: np.ndarray, video_of_text: np.ndarray, video_to_text_scores: np.ndarray | None = None
) -> dict[str, float]:
    """Recalls at 1, 5, 10 (percent), median and mean rank in both directions.

    Args:
      similarity: [V, C], the score of every video with every caption.
      video_of_text: [C] int, the row of each caption's own video. Every video must have a caption.
      video_to_text_scores: [V, C], other scores for the direction video to text, as re-ranking gives them.

    Returns:
      t2v_r1, t2v_r5, t2v_r10, t2v_median_rank, t2v_mean_rank, and the same five with v2t.

    Raises:
      STGTError: video_of_text does not fit the scores.
    """
    video_of_text = _checked_owners(similarity, video_of_text)
    back = similarity if video_to_text_scores is None else video_to_text_scores
    return {
        **_summary("t2v", text_to_video_ranks(similarity, video_of_text)),
        **_summary("v2t", video_to_text_ranks(back, video_of_text)),
    }


def dual_softmax(similarity: np.ndarray, temperature: float, *, axis: int) -> np.ndarray:
    """Returns similarities [V, C] times their softmax, at the model's temperature, over all queries.

    A candidate that fits many queries well loses by it. (Cheng et al., "Improving Video-Text Retrieval by Multi-Stream
    Corpus Alignment and Dual Softmax Loss", arXiv 2109.04290.)

    Args:
      similarity: [V, C].
      temperature: of the softmax.
      axis: of the queries: 1 where texts search for videos, 0 where videos search for texts.
    """
    logits = similarity.astype(np.float64) / temperature
    weights = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return similarity * weights / weights.sum(axis=axis, keepdims=True)


def twin_metrics(
    text_to_video_scores: np.ndarray,
    video_to_text_scores: np.ndarray,
    video_of_text: np.ndarray,
    groups: Sequence[str],
) -> dict[str, float]:
    """Measures whether videos prefer their own caption to one that differs from it only in time order.

    Such captions form a group. The twins of a caption are the captions of other videos in its group.

    Args:
      text_to_video_scores: [V, C].
      video_to_text_scores: [V, C]; the same matrix if nothing is re-ranked.
      video_of_text: [C] int, the row of each caption's own video.
      groups: the group's name for each of the C captions; empty for none.

    Returns:
      num_texts: number of captions that have a twin. The other metrics are over these, NaN if there are none.
      twin_accuracy: percentage whose own video scores them above every twin; a tie with n twins counts 1 / (1 + n).
      twin_chance: the accuracy of guessing within the group.
      t2v_r1: their text-to-video R@1 against the whole gallery.

    Raises:
      STGTError: video_of_text does not fit the scores.
    """
    video_of_text = _checked_owners(text_to_video_scores, video_of_text)
    names = np.asarray(groups, dtype=str)
    grouped = np.flatnonzero(names != "")
    is_twin = (names[grouped, None] == names[None, grouped]) & (
        video_of_text[grouped, None] != video_of_text[None, grouped]
    )  # [g, g]: for every caption with a group, which of them are its twins
    has_twin = is_twin.any(axis=1)
    texts, is_twin = grouped[has_twin], is_twin[has_twin]
    if not texts.size:
        return {"num_texts": 0, "twin_accuracy": np.nan, "twin_chance": np.nan, "t2v_r1": np.nan}
    scores = video_to_text_scores[video_of_text[texts]]  # [n, C]
    own = scores[np.arange(texts.size), texts]
    twins = np.where(is_twin, scores[:, grouped], -np.inf)  # [n, g]
    best_twin = twins.max(axis=1)
    tied = (twins == own[:, None]).sum(axis=1)
    ranks = text_to_video_ranks(text_to_video_scores, video_of_text)[texts]
    return {
        "num_texts": int(texts.size),
        "twin_accuracy": _percent(np.where(own >= best_twin, 1.0 / (1 + tied), 0.0)),
        "twin_chance": _percent(1.0 / (1 + is_twin.sum(axis=1))),
        "t2v_r1": _percent(ranks <= 1),
    }


def format_metrics(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Returns a text table of `retrieval_metrics` results: a line in each direction for every named result."""
    width = max(len("video to text"), *(len(f"video to text, {name}") for name in rows))
    heads = [f"R@{k}" for k in RECALLS] + ["MedR", "MeanR"]
    lines = [" " * width + "".join(f"{head:>8}" for head in heads)]
    for direction, key in (("text to video", "t2v"), ("video to text", "v2t")):
        for name, metrics in rows.items():
            label = f"{direction}, {name}" if name else direction
            recalls = "".join(f"{metrics[f'{key}_r{k}']:8.1f}" for k in RECALLS)
            ranks = f"{metrics[f'{key}_median_rank']:8.1f}{metrics[f'{key}_mean_rank']:8.1f}"
            lines.append(f"{label:<{width}}{recalls}{ranks}")
    return "\n".join(lines)


def _checked_owners(scores: np.ndarray, video_of_text: np.ndarray) -> np.ndarray:
    owners = np.asarray(video_of_text)
    num_videos, num_texts = scores.shape
    if owners.shape != (num_texts,) or not np.issubdtype(owners.dtype, np.integer):
        raise STGTError(f"video_of_text must hold one video row for each of the {num_texts} captions")
    if not np.array_equal(np.unique(owners), np.arange(num_videos)):
        raise STGTError(
            f"video_of_text names {np.unique(owners).size} videos, but the scores have {num_videos} rows; every video"
            " needs a caption, and every caption a video"
        )
    return owners


def _summary(prefix: str, ranks: np.ndarray) -> dict[str, float]:
    return {
        **{f"{prefix}_r{k}": _percent(ranks <= k) for k in RECALLS},
        f"{prefix}_median_rank": float(np.median(ranks)),
        f"{prefix}_mean_rank": float(np.mean(ranks)),
    }


def _percent(hits: np.ndarray) -> float:
    return 100.0 * float(np.mean(hits))
