"""Question answering: metrics by type of question, the control that never looks, and answers that are not listed."""

from collections import Counter

import numpy as np

from stgt_jax.eval.question_answering import (
    AnsweringResult,
    accuracy_by_type,
    format_answering,
    most_frequent_answers,
    question_type,
)

QUESTIONS = ("what is red", "What moves?", "who sings", "is it red", "how many men")


def test_type_is_the_first_word():
    assert [question_type(question) for question in QUESTIONS] == ["what", "what", "who", "other", "how"]


def test_unlisted_answers_are_wrong_and_lower_the_coverage():
    result = AnsweringResult(
        ("a", "a", "b", "b", "c"), QUESTIONS, ("x", "y", "z", "rare", "x"), ("x", "x", "z", "y", "x"),
        np.ones(5, np.float32), frozenset("xyz"),
    )  # fmt: skip
    figures = result.to_dict()
    assert figures["coverage"] == 80.0 and figures["num_videos"] == 3
    assert figures["accuracy"] == {
        "all": {"questions": 5, "accuracy": 60.0},
        "what": {"questions": 2, "accuracy": 50.0},
        "who": {"questions": 1, "accuracy": 100.0},
        "how": {"questions": 1, "accuracy": 100.0},
        "other": {"questions": 1, "accuracy": 0.0},
    }
    table = format_answering({"the model": accuracy_by_type(result.questions, result.is_right)}, result)
    assert "80.0 % of their answers are among the 3" in table and "60.0" in table


def test_control_takes_the_same_question_then_the_type_then_any():
    known = {
        "what is it": Counter({"ball": 2, "dog": 2}),
        "what moves": Counter({"dog": 3}),
        "who": Counter({"man": 9}),
    }
    asked = ["what is it", "what flies", "where is it"]
    assert most_frequent_answers(asked, known) == ["ball", "dog", "man"]
