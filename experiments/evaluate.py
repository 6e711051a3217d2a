"""Evaluation of a model on a split of a shard set: retrieval, captioning and question answering."""

import dataclasses
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from data_pipeline.config import TRAIN_SPLIT, DataConfig
from data_pipeline.loader import eval_batches
from data_pipeline.questions import choose_answers, question_tokenizer, read_answers, read_questions
from data_pipeline.shards import VOCAB_NAME, ShardSettings, list_splits, open_shards
from data_pipeline.tokenizer import decode, load_tokenizer
from experiments.cache_tokens import check_tokens
from experiments.results import Subject, describe_answering, describe_captioning, describe_retrieval
from experiments.steps import write_json
from stgt_jax.api import load
from stgt_jax.config import GenerationConfig
from stgt_jax.errors import STGTError
from stgt_jax.eval.captioning import CaptioningResult, evaluate_captions
from stgt_jax.eval.question_answering import (
    AnsweringResult,
    accuracy_by_type,
    evaluate_answers,
    most_frequent_answers,
)
from stgt_jax.eval.retrieval import RetrievalResult, Rule, evaluate_retrieval
from stgt_jax.exported import model_folder
from stgt_jax.run_folder import Run, check_vocabulary, read_run
from stgt_jax.storage import check_storage

FRAME_SHUFFLE_SEED = 0
# Tokens at most, where answers are chosen by likelihood.
QUESTION_LENGTH, ANSWER_LENGTH = DataConfig().question_length, 8
_log = logging.getLogger("stgt_jax")


Computation = Literal["float32", "model"]  # dtype: as in the published evaluation, or that of the training


def retrieval(
    checkpoint: str | Path,
    shards: str | Path,
    *,
    split: str,
    k_test: int,
    batch_size: int,
    rule: Rule = "probability",
    dtype: Computation = "float32",
    shuffle_frames: bool = False,
    results: str | Path | None = None,
) -> RetrievalResult:
    """Measures retrieval over all clips and captions of a split.

    Args:
      checkpoint: folder or name of a model, as for `stgt_jax.load`.
      shards: folder of a shard set.
      split: of the shard set.
      k_test: candidates of each query that are re-ranked.
      batch_size: clips encoded at a time.
      rule: what re-ranking adds to the similarity.
      dtype: of the computation. Cached tokens are read in the dtype that made them.
      shuffle_frames: shuffle the frames of every clip, to test whether the model uses their order.
      results: results file to write (`experiments.results`).

    Raises:
      STGTError: the checkpoint or the shards do not exist, or do not fit each other (`check_shards`).
    """
    subject = _open(checkpoint, shards, split, batch_size, dtype, shuffle_frames)
    result = evaluate_retrieval(subject.encoder, subject.batches, k_test=k_test, rule=rule)
    result = dataclasses.replace(result, frames=subject.frames)
    if results is not None:
        _write_results(results, describe_retrieval(result, subject, {"k_test": k_test, "rule": rule}))
    return result


def captioning(
    checkpoint: str | Path,
    shards: str | Path,
    *,
    split: str,
    generation: GenerationConfig,
    batch_size: int,
    seed: int = 0,
    dtype: Computation = "float32",
    results: str | Path | None = None,
) -> CaptioningResult:
    """Writes a caption of every clip of a split, and compares it with the clip's own captions.

    Args:
      checkpoint: as for `retrieval`; likewise `shards`, `split`, `batch_size`, `dtype` and `results`.
      shards: folder of a shard set.
      split: of the shard set.
      generation: how captions are written.
      batch_size: clips captioned at a time.
      seed: of the method "nucleus".
      dtype: of the computation.
      results: results file to write (`experiments.results`).

    Raises:
      STGTError: as `retrieval`; or the model reads fewer tokens than a caption may have.
    """
    subject = _open(checkpoint, shards, split, batch_size, dtype)
    to_text = functools.partial(decode, load_tokenizer(subject.source.shards / VOCAB_NAME))
    result = evaluate_captions(subject.encoder, subject.batches, to_text, generation, seed=seed)
    if results is not None:
        _write_results(results, describe_captioning(result, subject, dataclasses.asdict(generation) | {"seed": seed}))
    return result


def answering(
    checkpoint: str | Path,
    shards: str | Path,
    *,
    split: str,
    batch_size: int,
    answers: str = "",
    num_answers: int = 1500,
    num_candidates: int = 0,
    dtype: Computation = "float32",
    shuffle_frames: bool = False,
    results: str | Path | None = None,
) -> tuple[AnsweringResult, dict[str, dict[str, dict[str, float]]]]:
    """Answers all questions of a split.

    Args:
      checkpoint: as for `retrieval`; likewise `shards`, `split`, `batch_size`, `dtype`, `shuffle_frames`, `results`.
      shards: folder of a shard set.
      split: of the shard set.
      batch_size: clips encoded at a time.
      answers: file of the answers to choose among by likelihood; by default those of the model's head, or without one
        the most frequent ones of the training split.
      num_answers: of these.
      num_candidates: if not 0, answers are chosen by their likelihood (`models.answer_ranking`), not by the head.
      dtype: of the computation.
      shuffle_frames: shuffle the frames of every clip.
      results: results file to write (`experiments.results`).

    Returns:
      The answers; and `accuracy_by_type` of "the model" and, where the shard set has a split to learn it from, of "the
      question alone": what the most frequent training answer to the question gives.

    Raises:
      STGTError: as `retrieval`; or the model has no list of answers.
    """
    run = read_run(model_folder(checkpoint))
    subject = _open(checkpoint, shards, split, batch_size, dtype, shuffle_frames)
    options: dict[str, Any] = {}
    if num_candidates:
        options = {"by": "likelihood", "answers": answers, "num_answers": num_answers, "candidates": num_candidates}
        known = read_answers(answers) if answers else _answers_of(run, shards, num_answers)
        length = min(QUESTION_LENGTH, run.model.qformer.max_text_length - ANSWER_LENGTH)
    else:
        known, length = run.answers, run.question_length
    tokenize = question_tokenizer(str(shards), length)
    result = evaluate_answers(subject.encoder, subject.batches, tokenize, known, num_candidates=num_candidates)
    rows = {"the model": accuracy_by_type(result.questions, result.is_right)}
    if TRAIN_SPLIT in list_splits(shards) and split != TRAIN_SPLIT:
        asked = read_questions(open_shards(shards, TRAIN_SPLIT)).by_question
        guessed = most_frequent_answers(result.questions, asked)
        right = np.array([a == b for a, b in zip(guessed, result.right_answers, strict=True)])
        rows["the question alone"] = accuracy_by_type(result.questions, right)
    if results is not None:
        _write_results(results, describe_answering(result, rows, subject, options))
    return result, rows


def is_first_process() -> bool:
    """Whether this process is the one of several that shows and writes the figures."""
    return jax.process_index() == 0


def _write_results(path: str | Path, content: dict[str, Any]) -> None:
    if is_first_process():
        write_json(path, content)


def _answers_of(run: Run, shards: str | Path, num_answers: int) -> tuple[str, ...]:
    if run.content.get("answers"):
        return run.answers
    return choose_answers(read_questions(open_shards(shards, TRAIN_SPLIT)), num_answers)


def _open(
    checkpoint: str | Path,
    shards: str | Path,
    split: str,
    batch_size: int,
    dtype: Computation,
    shuffle_frames: bool = False,
) -> Subject:
    check_storage(checkpoint, shards)
    settings = check_shards(read_run(model_folder(checkpoint)), shards, split)
    model, source = load(checkpoint, batch_size=batch_size, devices=jax.devices()), open_shards(shards, split)
    check_tokens(source, model.config, model.params)
    encoder = model.encoder if dtype == "model" or settings.tokens else model.encoder.with_dtype("float32")
    frames = _frames_read(settings, model.config.num_frames)
    _log.info("evaluation: %s", _describe_frames(frames))
    batches = eval_batches(
        DataConfig(shards=str(shards), frame_shape=settings.frame_shape, clean_text=settings.clean_text),
        split,
        batch_size,
        num_frames=model.config.num_frames,
        image_size=model.config.vision.image_size,
        shuffle_frames_seed=FRAME_SHUFFLE_SEED if shuffle_frames else None,
    )
    options = {"split": split, "dtype": dtype, "encode_batch_size": batch_size}
    options |= {"shuffle_frames": "true"} if shuffle_frames else {}
    return Subject(str(checkpoint), encoder, source, batches, frames, options)


def _frames_read(settings: ShardSettings, num_frames: int) -> dict[str, Any]:
    """Returns how evaluation gets the T = `num_frames` frames of a clip, for the results file.

    Published figures are comparable only with frames stretched to a square and chosen exactly (docs/model.md section
    6.3).
    """
    is_exact = settings.num_kept_frames % num_frames == 0
    return {
        "frame_shape": settings.frame_shape,
        "encoding": settings.encoding,
        "jpeg_quality": settings.jpeg_quality,
        "chosen": "floor(i n / T)" if is_exact else "the kept frame nearest to floor(i n / T)",
        "num_frames": num_frames,
        "num_kept_frames": settings.num_kept_frames,
    }


def _describe_frames(read: Mapping[str, Any]) -> str:
    """Returns the line of `_frames_read` for the log."""
    quality = f" of quality {read['jpeg_quality']}" if read["jpeg_quality"] else ""
    kept, taken = read["num_kept_frames"], read["num_frames"]
    hint = "" if kept % taken == 0 else f"; a multiple of {taken} kept frames would give exactly those"
    return (
        f"{taken} frames a clip, {read['frame_shape']}, {read['encoding']}{quality}: {read['chosen']}, of {kept}{hint}"
    )


def check_shards(run: Run, shards: str | Path, split: str) -> ShardSettings:
    """Checks that a split fits the model of a run, and returns its settings.

    It logs a warning if the frames have another size, or if another number of them was kept.

    Raises:
      STGTError: the split does not exist, or has another vocabulary or longer captions than the model.
    """
    settings, longest = open_shards(shards, split).settings, run.model.qformer.max_text_length
    check_vocabulary(run, shards, settings.vocab_sha256)
    if settings.max_text_length > longest:
        raise STGTError(
            f"the captions of '{shards}' have {settings.max_text_length} tokens, and the model in '{run.folder}' reads"
            f" {longest}; build the shards with --max-text-length {longest}"
        )
    for option in ("frame_shape", "clean_text"):
        given, trained = getattr(settings, option), getattr(run.preparation, option)
        if given != trained:
            raise STGTError(
                f"'{shards}' was built with {option}={given}, and the model in '{run.folder}' was trained with"
                f" {trained}; build the shards with --{option.replace('_', '-')} {trained}"
            )
    for option in ("num_kept_frames", "resize"):
        given, trained = getattr(settings, option), getattr(run.preparation, option)
        if given != trained:
            _log.warning(
                "warning: '%s' was built with %s=%s, the training shards with %s=%s; this may lower the scores",
                shards, option, given, option, trained,
            )  # fmt: skip
    return settings
