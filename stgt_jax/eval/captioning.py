"""Captioning with a trained model: write a caption of every video, and compare it with the video's own captions."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stgt_jax.config import GenerationConfig
from stgt_jax.encoder import Encoder
from stgt_jax.errors import STGTError
from stgt_jax.eval.caption_metrics import caption_metrics, caption_scores

CAPTION_METRICS = {"bleu_4": "BLEU-4", "rouge_l": "ROUGE-L", "cider_d": "CIDEr-D"}  # key -> name for people


@dataclass(frozen=True)
class CaptioningResult:
    """The captions of V videos, in the order in which these were read."""

    video_ids: tuple[str, ...]  # V
    captions: tuple[tuple[str, ...], ...]  # V, of each the captions written, the best first
    log_probabilities: np.ndarray  # float32 [V, captions of a video], see `generate`
    references: tuple[tuple[str, ...], ...]  # V, of each the captions that it has
    generation: GenerationConfig
    seconds: float = 0.0  # of reading the videos and writing the captions

    @property
    def best(self) -> list[str]:
        """The best caption of each video."""
        return [of_video[0] for of_video in self.captions]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """`caption_metrics` of the best captions."""
        return caption_metrics(self.best, self.references)

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """`caption_scores` of the best captions."""
        return caption_scores(self.best, self.references)

    def to_dict(self) -> dict[str, Any]:
        """Returns all metrics, as plain numbers for JSON."""
        num_references = sum(map(len, self.references))
        return {"num_videos": len(self.video_ids), "num_references": num_references, "metrics": self.metrics}


def evaluate_captions(
    encoder: Encoder,
    batches: Iterable[Mapping[str, Any]],
    to_text: Callable[[np.ndarray], str],
    generation: GenerationConfig,
    *,
    seed: int = 0,
) -> CaptioningResult:
    """Writes a caption of every video of the batches.

    Args:
      encoder: of the model.
      batches: evaluation batches, see `evaluate_retrieval`.
      to_text: from token ids int32 [S] to text.
      generation: how captions are written.
      seed: of the method "nucleus".

    Raises:
      STGTError: there is no valid record, or a video has no caption to compare with.
    """
    start, video_ids, references = time.perf_counter(), list[str](), list[tuple[str, ...]]()

    def clips() -> Iterator[np.ndarray]:
        for batch in batches:
            for row in np.flatnonzero(batch["valid"]):
                video_ids.append(str(batch["video_id"][row]))
                references.append(tuple(map(str, batch["caption"][batch["row"] == row])))
                if not references[-1]:
                    raise STGTError(f"video '{video_ids[-1]}' has no caption to compare with")
                yield np.asarray(batch["video"][row])

    ids, scores = encoder.write_captions(clips(), generation, seed=seed)
    if not video_ids:
        raise STGTError("the evaluation data hold no clip; check the split's shard set")
    captions = tuple(tuple(to_text(caption) for caption in of_video) for of_video in ids)
    seconds = time.perf_counter() - start
    return CaptioningResult(tuple(video_ids), captions, scores, tuple(references), generation, seconds)


def describe_metrics(metrics: Mapping[str, float]) -> str:
    """Returns `CaptioningResult.metrics` as one line."""
    return ", ".join(f"{name} {metrics[key]:.1f}" for key, name in CAPTION_METRICS.items())


def format_captioning(result: CaptioningResult) -> str:
    """Returns a text table of the metrics."""
    figures = result.to_dict()
    return "\n".join(
        [
            f"{figures['num_videos']} videos, {figures['num_references']} captions to compare with",
            "".join(f"{head:>9}" for head in CAPTION_METRICS.values()),
            "".join(f"{figures['metrics'][name]:9.1f}" for name in CAPTION_METRICS),
            f"time: {result.seconds:.1f} s",
        ]
    )
