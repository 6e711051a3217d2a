"""Question answering with a trained model: answers to all questions of a split, right only if they equal word for word.

docs/model.md section 5.4.
"""

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from stgt_jax.encoder import Encoder
from stgt_jax.errors import STGTError
from stgt_jax.models.answer_ranking import TokenizedAnswers

TYPES = ("what", "who", "how", "when", "where", "which")  # first words of a question; all others are "other"

Tokenize = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]  # texts -> ids and mask, int32 [C, S] each


@dataclass(frozen=True)
class AnsweringResult:
    """The answers to N questions, in the order in which these were read."""

    video_ids: tuple[str, ...]  # N, of each question
    questions: tuple[str, ...]  # N
    right_answers: tuple[str, ...]  # N
    answers: tuple[str, ...]  # N, the model's
    probabilities: np.ndarray  # float32 [N], of the model's answers
    listed: frozenset[str]  # the answers that the model chooses among
    seconds: float = 0.0

    @property
    def is_right(self) -> np.ndarray:
        """Whether each answer is right, bool [N]. An answer that is not listed is never given."""
        return np.array([given == right for given, right in zip(self.answers, self.right_answers, strict=True)], bool)

    @property
    def coverage(self) -> float:
        """The percentage of questions whose right answer is listed, which is the best accuracy that there can be."""
        return 100.0 * sum(answer in self.listed for answer in self.right_answers) / len(self.right_answers)

    def to_dict(self) -> dict[str, Any]:
        """Returns all metrics, as plain numbers for JSON."""
        return {
            "num_videos": len(set(self.video_ids)),
            "num_questions": len(self.questions),
            "num_answers": len(self.listed),
            "coverage": self.coverage,
            "accuracy": accuracy_by_type(self.questions, self.is_right),
        }


def evaluate_answers(
    encoder: Encoder,
    batches: Iterable[Mapping[str, Any]],
    tokenize: Tokenize,
    answers: Sequence[str],
    *,
    num_candidates: int = 0,
) -> AnsweringResult:
    """Answers every question of the batches.

    Args:
      encoder: of a model; with a head for questions, or `num_candidates`.
      batches: evaluation batches, see `evaluate_retrieval`; with the questions of their clips, in any number N:
        question and answer [N] str, and question_row [N], the clip that each belongs to.
      tokenize: of questions.
      answers: that the model chooses among; for the head in its order.
      num_candidates: if not 0, answers are chosen by their likelihood, so many of them by all their tokens.

    Raises:
      STGTError: there is no question.
    """
    start = time.perf_counter()
    choose = encoder.answer
    if num_candidates:
        tokenized = tokenize_answers(answers, tokenize, encoder.model.config.qformer.sep_token_id)
        choose = functools.partial(encoder.rank_answers, answers=tokenized, num_candidates=num_candidates)
    video_ids, questions, right, given, probabilities = [list[Any]() for _ in range(5)]
    for batch in batches:
        if not len(batch["question"]):
            continue
        videos = encoder.encode_videos(batch["video"][batch["valid"]])
        ids, mask = tokenize(batch["question"].tolist())
        best, probability = choose(videos, ids, mask, zip(batch["question_row"], range(len(ids)), strict=True))
        video_ids += batch["video_id"][batch["question_row"]].tolist()
        questions += batch["question"].tolist()
        right += batch["answer"].tolist()
        given += [answers[number] for number in best]
        probabilities += probability.tolist()
    if not questions:
        raise STGTError("the evaluation data hold no question; build the split from rows with question and answer")
    return AnsweringResult(
        tuple(video_ids), tuple(questions), tuple(right), tuple(given), np.array(probabilities, np.float32),
        frozenset(answers), time.perf_counter() - start,
    )  # fmt: skip


def tokenize_answers(answers: Sequence[str], tokenize: Tokenize, sep_token_id: int) -> TokenizedAnswers:
    """Returns the answers' tokens with [SEP], which `tokenize` puts behind them, and without [CLS]."""
    ids, mask = (x[:, 1:] for x in tokenize(answers))
    longest = int(mask.sum(axis=1).max())
    if not (ids[np.arange(len(ids)), mask.sum(axis=1) - 1] == sep_token_id).all():
        raise STGTError("the tokenizer of the shards has another [SEP] than the model")
    return TokenizedAnswers(jnp.asarray(ids[:, :longest]), jnp.asarray(mask[:, :longest]))


def accuracy_by_type(questions: Sequence[str], is_right: np.ndarray) -> dict[str, dict[str, float]]:
    """Returns for "all" and each type of question that occurs: "questions", their number, and "accuracy" in percent."""
    types = np.array([question_type(question) for question in questions])
    chosen = {"all": np.ones(len(types), bool)} | {name: types == name for name in (*TYPES, "other")}
    return {
        name: {"questions": int(mask.sum()), "accuracy": float(100.0 * is_right[mask].mean())}
        for name, mask in chosen.items()
        if mask.any()
    }


def question_type(question: str) -> str:
    """Returns the first word of a question if it is one of `TYPES`, else "other"."""
    word = question.strip().lower().partition(" ")[0].rstrip("?,")
    return word if word in TYPES else "other"


def most_frequent_answers(questions: Sequence[str], by_question: Mapping[str, Counter[str]]) -> list[str]:
    """Answers questions without looking: the best that a model can do that never sees a video, a control.

    Args:
      questions: to answer.
      by_question: how often each answer was given to each question in training.

    Returns:
      The most frequent answer to the same question; else to questions of the same type; else to any.
    """
    by_type: dict[str, Counter[str]] = {}
    for question, answers in by_question.items():
        for name in (question_type(question), "any"):
            by_type.setdefault(name, Counter()).update(answers)

    def most_frequent(question: str) -> str:
        answers = by_question.get(question) or by_type.get(question_type(question)) or by_type["any"]
        return min(answers, key=lambda answer: (-answers[answer], answer))

    return [most_frequent(question) for question in questions]


def format_answering(rows: Mapping[str, Mapping[str, Mapping[str, float]]], result: AnsweringResult) -> str:
    """Returns a text table of the accuracy by type of question, a line for each named `accuracy_by_type`."""
    first = next(iter(rows.values()))
    width = max(map(len, rows))
    lines = [
        f"{len(result.questions)} questions; {result.coverage:.1f} % of their answers are among the"
        f" {len(result.listed)} that the model knows",
        " " * width + "".join(f"{name:>9}" for name in first),
        f"{'questions':<{width}}" + "".join(f"{of_type['questions']:9d}" for of_type in first.values()),
    ]
    for name, row in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{row[kind]['accuracy']:9.1f}" for kind in first))
    return "\n".join([*lines, f"time: {result.seconds:.1f} s"])
