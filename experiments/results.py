"""Results files of retrieval: what was measured, on what, and the rank of every query; and two of them compared."""

import dataclasses
import datetime
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.shards import ShardSource
from stgt_jax.encoder import Encoder
from stgt_jax.errors import STGTError
from stgt_jax.eval.metrics import RECALLS, text_to_video_ranks, video_to_text_ranks
from stgt_jax.eval.retrieval import RetrievalResult
from stgt_jax.exported import model_folder
from stgt_jax.fingerprint import fingerprint
from stgt_jax.run_folder import folder_path
from stgt_jax.train.weights import CONVERSION_NAME

SCHEMA = 1
_SAME = ("data_sha256", "num_videos", "num_texts")  # of two files that can be compared


def describe_result(
    result: RetrievalResult, encoder: Encoder, source: ShardSource, checkpoint: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the content of a results file.

    It holds all figures, "queries" with the ranks and scores of every caption and video, and what they depend on:
    command, split, hash of the data, hash of the weights, dtype, and how frames and texts were prepared.
    """
    words = ["stgt", "eval", "retrieval", "--checkpoint", checkpoint, "--shards", str(source.shards)]
    words += [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    scores, owners = result.similarity, result.video_of_text
    columns = np.arange(len(owners))
    to_video, reranked = (text_to_video_ranks(x, owners).tolist() for x in (scores, result.text_to_video))
    to_text, back = (video_to_text_ranks(x, owners).tolist() for x in (scores, result.video_to_text))
    text_queries = [
        {"caption": caption, "video": result.video_ids[video], "rank": rank, "reranked_rank": new, "similarity": score}
        for caption, video, rank, new, score in zip(
            result.captions, owners.tolist(), to_video, reranked, scores[owners, columns].tolist(), strict=True
        )
    ]
    video_queries = [
        {"video": video, "rank": rank, "reranked_rank": new}
        for video, rank, new in zip(result.video_ids, to_text, back, strict=True)
    ]
    return {
        "schema": SCHEMA,
        "command": shlex.join(words),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "shards": str(source.shards),
        "split": source.split,
        "data_sha256": source.manifest_sha256,
        "checkpoint": checkpoint,
        "weights_fingerprint": fingerprint(encoder.params),
        "weights_notes": _notes(checkpoint),
        "dtype": encoder.model.config.dtype,
        "preparation": {**result.frames, "clean_text": source.settings.clean_text,
                        "max_text_length": source.settings.max_text_length},
        **result.to_dict(),
        "seconds": dict(result.seconds),
        "queries": {"text_to_video": text_queries, "video_to_text": video_queries},
    }  # fmt: skip


def _notes(checkpoint: str) -> list[str]:
    """What a conversion of the weights noted, such as that a table of them is lost."""
    file = folder_path(model_folder(checkpoint)) / CONVERSION_NAME
    return json.loads(file.read_text())["notes"] if file.exists() else []


def read_results(path: str | Path) -> dict[str, Any]:
    """Reads a results file. Raises STGTError where it is missing, or not one of this version."""
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise STGTError(
            f"'{path}' is missing or not JSON ({error}); `stgt eval retrieval --results` writes it"
        ) from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or "queries" not in content:
        raise STGTError(f"'{path}' is not a results file of this version; `stgt eval retrieval --results` writes one")
    return content


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much higher a recall of the second file is than that of the first, in percentage points."""

    metric: str
    first: float
    second: float
    low: float  # ends of the interval that holds 95 % of the resampled differences
    high: float


def compare_results(
    first: Mapping[str, Any], second: Mapping[str, Any], *, resamples: int = 10_000, seed: int = 0
) -> list[Difference]:
    """Compares the recalls of two results files by a paired bootstrap.

    Videos are drawn with replacement, each with all its captions, which are not independent of each other. Both files
    are measured on the same draw.

    Args:
      first: content of a results file.
      second: another one, of the same data.
      resamples: draws.
      seed: of the draws.

    Raises:
      STGTError: the files are of other data.
    """
    for name in _SAME:
        if first[name] != second[name]:
            raise STGTError(
                f"the results are of other data: {name} is {str(first[name])[:12]} and {str(second[name])[:12]};"
                " measure both on the same split of the same shard set"
            )
    videos = [query["video"] for query in first["queries"]["video_to_text"]]
    draws = np.random.default_rng(seed).multinomial(len(videos), np.full(len(videos), 1 / len(videos)), resamples)
    return [
        _difference(direction, ranks, k, first, second, videos, draws)
        for direction in ("text_to_video", "video_to_text")
        for ranks in ("rank", "reranked_rank")
        for k in RECALLS
    ]


def _difference(
    direction: str,
    ranks: str,
    k: int,
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    videos: Sequence[str],
    draws: np.ndarray,
) -> Difference:
    row = {video: number for number, video in enumerate(videos)}
    owners = np.array([row[query["video"]] for query in first["queries"][direction]])
    hits = [np.array([query[ranks] <= k for query in one["queries"][direction]], float) for one in (first, second)]
    counts = np.bincount(owners, minlength=len(videos))
    gains = np.bincount(owners, hits[1] - hits[0], minlength=len(videos))
    differences = 100 * (draws @ gains) / (draws @ counts)
    low, high = np.quantile(differences, (0.025, 0.975))
    name = f"{direction.replace('_', ' ')}{', re-ranked' if ranks != 'rank' else ''}, R@{k}"
    return Difference(name, 100 * hits[0].mean(), 100 * hits[1].mean(), float(low), float(high))
