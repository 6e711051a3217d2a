"""The questions and answers of a split: how many a video has, which answers occur, and which are told apart.

A model that answers questions chooses among a list of answers: those of a file, or the most frequent ones of training.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from data_pipeline.errors import DataError
from data_pipeline.prepare import in_threads
from data_pipeline.shards import VOCAB_NAME, ShardSource, open_shards
from data_pipeline.tokenizer import encode, load_tokenizer
from stgt_jax.checks import parse_json


@dataclass(frozen=True)
class Questions:
    """What a split asks."""

    counts: np.ndarray  # int64 [videos], the questions about each
    answers: Counter[str]  # how often each answer occurs
    by_question: dict[str, Counter[str]]  # likewise, of the questions with the same words


def read_questions(source: ShardSource) -> Questions:
    """Returns what a split asks; all its records are read, once in a process.

    Raises:
      DataError: a record is damaged, or there is no question.
    """
    return _read_questions(str(source.shards), source.split, source.manifest_sha256)


@functools.lru_cache(4)
def _read_questions(shards: str, split: str, _: str) -> Questions:
    source = open_shards(shards, split)
    if not source.manifest["num_questions"]:
        raise DataError(f"split '{split}' of '{shards}' has no questions; build it from rows with question and answer")

    def texts(index: int) -> list[tuple[str, str]]:
        record = source[index]
        return list(zip(record.questions, record.answers, strict=True))

    counts, answers, by_question = [], Counter[str](), dict[str, Counter[str]]()
    for asked in in_threads(texts, range(len(source))):
        counts.append(len(asked))
        answers.update(answer for _, answer in asked)
        for question, answer in asked:
            by_question.setdefault(question, Counter())[answer] += 1
    return Questions(np.array(counts), answers, by_question)


def question_tokenizer(shards: str, length: int) -> Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]:
    """Returns the function from questions to ids and mask, int32 [N, length], by the vocabulary of a shard set."""
    tokenizer = load_tokenizer(epath.Path(shards) / VOCAB_NAME)
    return lambda questions: encode(tokenizer, questions, length)


def choose_answers(questions: Questions, num_answers: int) -> tuple[str, ...]:
    """Returns the most frequent answers, at most `num_answers`; of equally frequent ones the first in the alphabet."""
    ranked = sorted(questions.answers.items(), key=lambda item: (-item[1], item[0]))
    return tuple(answer for answer, _ in ranked[:num_answers])


def read_answers(path: str) -> tuple[str, ...]:
    """Reads a list of answers: a JSON list, JSON that maps answers to 0, 1, ... (train_ans2label.json), or lines.

    Raises:
      DataError: the file is missing or is none of these, or names an answer twice.
    """
    try:
        text = epath.Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"answers '{path}' cannot be read ({error}); --data.answers names a file of them") from error
    answers = _parse_answers(path, text)
    if not answers or len(set(answers)) != len(answers) or "" in answers:
        raise DataError(f"answers '{path}' must name one answer or more, none of them empty or twice")
    return tuple(answers)


def _parse_answers(path: str, text: str) -> Sequence[str]:
    if not text.lstrip().startswith(("[", "{")):
        return [line.strip() for line in text.splitlines()]
    try:
        content: Any = parse_json(text)
    except ValueError as error:
        raise DataError(f"answers '{path}' is not JSON: {error}") from error
    if isinstance(content, dict):
        if sorted(map(str, content.values())) != sorted(map(str, range(len(content)))):
            raise DataError(f"answers '{path}' must map its {len(content)} answers to 0, 1, ..., {len(content) - 1}")
        content = sorted(content, key=lambda answer: int(content[answer]))
    if not all(isinstance(answer, str) for answer in content):
        raise DataError(f"answers '{path}' must be a list of texts, or map texts to numbers")
    return [answer.strip() for answer in content]
