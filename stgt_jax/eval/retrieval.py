"""Retrieval with a trained model: score a gallery, re-rank the best candidates by matching (docs/model.md section 5).

An `Encoder` encodes every video and every caption once.
"""

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from stgt_jax.encoder import Encoder, score_similarity
from stgt_jax.errors import STGTError
from stgt_jax.eval.metrics import dual_softmax, format_metrics, retrieval_metrics, twin_metrics

Rule = Literal["probability", "logit"]  # what re-ranking adds: P(match), as STGT does, or the logit, as LAVIS does
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
    rule: Rule = "probability"  # what re-ranking added to the similarity
    temperature: float = 0.07  # of the model, for the dual softmax
    seconds: Mapping[str, float] = field(default_factory=dict)  # of encoding videos and texts, and of re-ranking
    frames: Mapping[str, Any] = field(default_factory=dict)  # how they were stored and chosen, for the results file

    @property
    def metrics(self) -> dict[str, float]:
        """`retrieval_metrics` by similarity alone."""
        return retrieval_metrics(self.similarity, self.video_of_text)

    @property
    def reranked_metrics(self) -> dict[str, float]:
        """`retrieval_metrics` after re-ranking. A right answer that is not among the candidates ranks last."""
        return retrieval_metrics(self.text_to_video, self.video_of_text, self.video_to_text)

    @property
    def dual_softmax_metrics(self) -> dict[str, float]:
        """`retrieval_metrics` by similarity times a softmax over all queries.

        It knows all queries of the test at once, so its figures compare only with others of its kind.
        """
        to_video = dual_softmax(self.similarity, self.temperature, axis=1)
        to_text = dual_softmax(self.similarity, self.temperature, axis=0)
        return retrieval_metrics(to_video, self.video_of_text, to_text)

    @property
    def num_shared_captions(self) -> int:
        """Captions whose very words another video has, too: they count as right for their own video alone."""
        owners: dict[str, set[int]] = {}
        for caption, video in zip(self.captions, self.video_of_text.tolist(), strict=True):
            owners.setdefault(caption, set()).add(video)
        return sum(len(owners[caption]) > 1 for caption in self.captions)

    @property
    def rows(self) -> dict[str, dict[str, float]]:
        """The metrics by the name of their row in a table."""
        rule = "re-ranked" if self.rule == "probability" else "re-ranked by logit"
        return {"": self.metrics, rule: self.reranked_metrics, "dual softmax": self.dual_softmax_metrics}

    def to_dict(self) -> dict[str, Any]:
        """Returns all metrics, as plain numbers for JSON; those of time order are NaN if no caption has a twin."""
        return {
            "num_videos": len(self.video_ids),
            "num_texts": len(self.captions),
            "k_test": self.k_test,
            "similarity": self.metrics,
            "reranked": self.reranked_metrics,
            "dual_softmax": self.dual_softmax_metrics,
            "rule": self.rule,
            "num_shared_captions": self.num_shared_captions,
            "time_order": time_order_metrics(self),
            **({"frames": dict(self.frames)} if self.frames else {}),
        }


def evaluate_retrieval(
    encoder: Encoder, batches: Iterable[Mapping[str, Any]], *, k_test: int = 32, rule: Rule = "probability"
) -> RetrievalResult:
    """Scores every caption against every video of the batches.

    Args:
      encoder: of the model.
      batches: evaluation batches of any size B: video [B, T, H, W, 3], valid [B] bool, video_id and group [B] str; and
        of their captions, in any number C: input_ids and attention_mask [C, S], caption [C] str, row [C], the clip that
        each belongs to. All processes of a run must read the same batches.
      k_test: number of candidates to re-rank for each query; of a smaller gallery, all.
      rule: what is added to their similarity: P(match), as in STGT, or the logit of a match, as in LAVIS.

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
    times = [time.perf_counter()]
    videos = encoder.encode_videos(itertools.chain([first], clips))
    times.append(time.perf_counter())
    input_ids, attention_mask = np.stack(gallery.input_ids), np.stack(gallery.attention_mask)
    scores = score_similarity(videos.embed, encoder.encode_texts(input_ids, attention_mask))  # [V, C]
    times.append(time.perf_counter())
    by_text = _candidates(scores.T, k_test).T  # [V, C] bool
    by_video = _candidates(scores, k_test)
    pairs = np.argwhere(by_text | by_video)  # [P, 2]: video, text; a pair that both directions want is matched once
    matched = scores.copy()
    as_logit = rule == "logit"
    matched[tuple(pairs.T)] += encoder.match(videos, input_ids, attention_mask, pairs, as_logit=as_logit)
    times.append(time.perf_counter())
    return RetrievalResult(
        similarity=scores,
        text_to_video=np.where(by_text, matched, np.float32(NOT_A_CANDIDATE)),
        video_to_text=np.where(by_video, matched, np.float32(NOT_A_CANDIDATE)),
        video_of_text=np.array(gallery.video_of_text),
        video_ids=tuple(gallery.video_ids),
        captions=tuple(gallery.captions),
        groups=tuple(gallery.groups),
        k_test=k_test,
        rule=rule,
        temperature=float(encoder.params["temperature"]),
        seconds=dict(zip(("videos", "texts", "re-ranking"), np.diff(times).tolist(), strict=True)),
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
    counts = f"{len(result.video_ids)} videos, {len(result.captions)} captions"
    if shared := result.num_shared_captions:
        counts += f"; {shared} captions are those of several videos, and count as right for their own alone"
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items())
    lines = [counts, format_metrics(result.rows)]
    return "\n".join(lines + ([f"time: {times}"] if times else []))


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
