"""Results files: what was measured, on what, and the outcome for every query or video; and two of them compared."""

import dataclasses
import datetime
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.shards import ShardSource
from stgt_jax.checks import parse_json
from stgt_jax.encoder import Encoder
from stgt_jax.errors import STGTError
from stgt_jax.eval.captioning import CaptioningResult
from stgt_jax.eval.metrics import RECALLS, text_to_video_ranks, video_to_text_ranks
from stgt_jax.eval.question_answering import AnsweringResult
from stgt_jax.eval.retrieval import RetrievalResult
from stgt_jax.exported import model_folder
from stgt_jax.fingerprint import fingerprint
from stgt_jax.run_folder import folder_path
from stgt_jax.train.weights import CONVERSION_NAME

SCHEMA = 1
RETRIEVAL, CAPTIONS, QUESTIONS = "retrieval", "captions", "qa"  # tasks, by the name of their command
_SAME = ("data_sha256", "num_videos")  # of two files that can be compared


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured, and on what."""

    checkpoint: str
    encoder: Encoder
    source: ShardSource
    batches: Iterator[dict[str, np.ndarray]]
    frames: Mapping[str, Any]  # how the frames of a clip are stored and chosen
    options: Mapping[str, Any]  # of the command, those that every task has


def describe_retrieval(result: RetrievalResult, subject: Subject, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of a results file of retrieval.

    It holds all figures, "queries" with the ranks and scores of every caption and video, and what they depend on
    (`_describe_subject`).
    """
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
        **_describe_subject(RETRIEVAL, subject, options),
        **result.to_dict(),
        "seconds": dict(result.seconds),
        "queries": {"text_to_video": text_queries, "video_to_text": video_queries},
    }


def describe_captioning(result: CaptioningResult, subject: Subject, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of a results file of captioning: all figures, and "items", a line for each video."""
    scores = {name: values.tolist() for name, values in result.scores.items()}
    items = [
        {
            "video": video,
            "captions": list(captions),
            "log_probabilities": log_probabilities.tolist(),
            "references": list(references),
            "scores": {name: values[row] for name, values in scores.items()},
        }
        for row, (video, captions, log_probabilities, references) in enumerate(
            zip(result.video_ids, result.captions, result.log_probabilities, result.references, strict=True)
        )
    ]
    return {
        **_describe_subject(CAPTIONS, subject, options),
        **result.to_dict(),
        "seconds": result.seconds,
        "items": items,
    }


def describe_answering(
    result: AnsweringResult,
    rows: Mapping[str, Mapping[str, Mapping[str, float]]],
    subject: Subject,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the content of a results file of question answering: all figures, and "items", a line a question."""
    items = [
        {
            "video": video,
            "question": question,
            "right": right,
            "answer": answer,
            "probability": probability,
            "scores": {"accuracy": 100.0 * is_right},
        }
        for video, question, right, answer, probability, is_right in zip(
            result.video_ids, result.questions, result.right_answers, result.answers,
            result.probabilities.tolist(), result.is_right.tolist(), strict=True,
        )
    ]  # fmt: skip
    return {
        **_describe_subject(QUESTIONS, subject, {name: value for name, value in options.items() if value}),
        **result.to_dict(),
        "controls": {name: row for name, row in rows.items() if name != "the model"},
        "seconds": result.seconds,
        "items": items,
    }


def _describe_subject(task: str, subject: Subject, options: Mapping[str, Any]) -> dict[str, Any]:
    """What figures depend on: command, data and weights with their hashes, dtype, how frames and texts were made."""
    source, settings = subject.source, subject.source.settings
    words = ["stgt", "eval", task, "--checkpoint", subject.checkpoint, "--shards", str(source.shards)]
    for name, value in {**subject.options, **options}.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return {
        "schema": SCHEMA,
        "task": task,
        "command": shlex.join(words),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "shards": str(source.shards),
        "split": source.split,
        "data_sha256": source.manifest_sha256,
        "checkpoint": subject.checkpoint,
        "weights_fingerprint": fingerprint(subject.encoder.params),
        "weights_notes": _notes(subject.checkpoint),
        "dtype": subject.encoder.model.config.dtype,
        "preparation": {
            **subject.frames, "clean_text": settings.clean_text, "max_text_length": settings.max_text_length,
        },
    }  # fmt: skip


def _notes(checkpoint: str) -> list[str]:
    """What a conversion of the weights noted, such as that a table of them is lost."""
    file = folder_path(model_folder(checkpoint)) / CONVERSION_NAME
    return parse_json(file.read_text())["notes"] if file.exists() else []


def read_results(path: str | Path) -> dict[str, Any]:
    """Reads a results file. Raises STGTError where it is missing, or not one of this version."""
    try:
        content = parse_json(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise STGTError(f"'{path}' is missing or not JSON ({error}); `stgt eval ... --results` writes it") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or not {"queries", "items"} & content.keys():
        raise STGTError(f"'{path}' is not a results file of this version; `stgt eval ... --results` writes one")
    return content


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much higher a figure of the second file is than that of the first."""

    metric: str
    first: float
    second: float
    low: float  # ends of the interval that holds 95 % of the resampled differences
    high: float


class _Figure(NamedTuple):
    """A figure that is a mean, over items of which each belongs to a video."""

    name: str
    videos: Sequence[str]  # of each item
    values: np.ndarray  # of each item


def compare_results(
    first: Mapping[str, Any], second: Mapping[str, Any], *, resamples: int = 10_000, seed: int = 0
) -> list[Difference]:
    """Compares the figures of two results files by a paired bootstrap.

    Videos are drawn with replacement, each with all its captions, which are not independent of each other. Both files
    are measured on the same draw.

    Args:
      first: content of a results file.
      second: another one, of the same task and data.
      resamples: draws.
      seed: of the draws.

    Raises:
      STGTError: the files are of other tasks or data.
    """
    tasks = [one.get("task", RETRIEVAL) for one in (first, second)]
    if tasks[0] != tasks[1]:
        raise STGTError(f"the results are of {tasks[0]} and of {tasks[1]}; compare two of the same task")
    for name in _SAME:
        if first[name] != second[name]:
            raise STGTError(
                f"the results are of other data: {name} is {str(first[name])[:12]} and {str(second[name])[:12]};"
                " measure both on the same split of the same shard set"
            )
    figures = [_figures(one) for one in (first, second)]
    videos = sorted({*figures[0][0].videos})
    draws = np.random.default_rng(seed).multinomial(len(videos), np.full(len(videos), 1 / len(videos)), resamples)
    return [_difference(one, other, videos, draws) for one, other in zip(*figures, strict=True)]


def _figures(content: Mapping[str, Any]) -> list[_Figure]:
    if "items" in content:
        videos, scores = zip(*((item["video"], item["scores"]) for item in content["items"]), strict=True)
        return [_Figure(name, videos, np.array([of_item[name] for of_item in scores])) for name in scores[0]]
    return [
        _Figure(
            f"{direction.replace('_', ' ')}{', re-ranked' if ranks != 'rank' else ''}, R@{k}",
            [query["video"] for query in queries],
            100.0 * np.array([query[ranks] <= k for query in queries]),
        )
        for direction, queries in content["queries"].items()
        for ranks in ("rank", "reranked_rank")
        for k in RECALLS
    ]


def _difference(first: _Figure, second: _Figure, videos: Sequence[str], draws: np.ndarray) -> Difference:
    row = {video: number for number, video in enumerate(videos)}
    owners = np.array([row[video] for video in first.videos])
    counts = np.bincount(owners, minlength=len(videos))
    gains = np.bincount(owners, second.values - first.values, minlength=len(videos))
    differences = (draws @ gains) / (draws @ counts)
    low, high = np.quantile(differences, (0.025, 0.975))
    return Difference(first.name, float(first.values.mean()), float(second.values.mean()), float(low), float(high))
