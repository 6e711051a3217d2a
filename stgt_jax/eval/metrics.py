"""Retrieval figures from score matrices: recalls, ranks, and the time-order control (docs/model.md section 5).

Pure numpy on finished scores [V, C] of V gallery videos and C captions. Ties count against the model: a candidate
scored like the right one stands before it, so constant scores never look good. Recalls and shares are in percent,
ranks start at 1.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from stgt_jax.errors import STGTError

RECALLS = (1, 5, 10)


def text_to_video_ranks(scores: np.ndarray, video_of_text: np.ndarray) -> np.ndarray:
    """Returns the rank [C] of each caption's own video among all V videos, from scores [V, C]."""
    own = scores[video_of_text, np.arange(scores.shape[1])]  # [C]
    return np.count_nonzero(~(scores < own), axis=0)  # not `>=`: a NaN must count against too; own counts itself


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
      similarity: [V, C] scores of every video with every caption.
      video_of_text: [C] int, the row of each caption's own video. Every video must have a caption.
      video_to_text_scores: [V, C], if video-to-text ranks by other scores (after re-ranking).

    Returns:
      t2v_r1, t2v_r5, t2v_r10, t2v_median_rank, t2v_mean_rank and the same five for v2t.
    """
    video_of_text = _checked_owners(similarity, video_of_text)
    back = similarity if video_to_text_scores is None else video_to_text_scores
    return {
        **_summary("t2v", text_to_video_ranks(similarity, video_of_text)),
        **_summary("v2t", video_to_text_ranks(back, video_of_text)),
    }


def twin_metrics(
    text_to_video_scores: np.ndarray,
    video_to_text_scores: np.ndarray,
    video_of_text: np.ndarray,
    groups: Sequence[str],
) -> dict[str, float]:
    """The time-order control: does a video know its caption from those that differ only in time order?

    A twin of a caption is a caption of another video of the same non-empty group.

    Args:
      text_to_video_scores, video_to_text_scores: [V, C]; twice the same matrix where nothing is re-ranked.
      video_of_text: [C] int. groups: C group names, empty for none.

    Returns:
      num_texts: captions that have a twin; all else is over these, NaN where there are none.
      twin_accuracy: share whose video scores them above every twin; a tie with n twins counts 1 / (1 + n).
      twin_chance: what guessing within the group reaches.
      t2v_r1: text-to-video R@1 against the whole gallery.
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
    """Returns a plain-text table of `retrieval_metrics` results, two lines (both directions) for each named row."""
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
            f"video_of_text names {np.unique(owners).size} of the {num_videos} gallery videos; each needs at least one"
            " caption and no caption may point beyond them"
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
