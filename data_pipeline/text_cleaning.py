"""Cleans captions and questions as the original and its framework LAVIS do; published figures need it."""

import re

from data_pipeline.config import TextCleaning

MAX_WORDS = 50
_MARKS = re.compile(r'[.!"()*#:;~]')


def clean_caption(text: str, cleaning: TextCleaning) -> str:
    """Returns a caption in lower case, blanks in place of some marks, and its first 50 words."""
    if cleaning == "none":
        return text
    return _first_words(re.sub(r"\s{2,}", " ", _MARKS.sub(" ", text.lower())))


def clean_question(text: str, cleaning: TextCleaning) -> str:
    """Returns a question cleaned as LAVIS does, which removes those marks; STGT cleans it as a caption."""
    if cleaning == "lavis":
        return _first_words(_MARKS.sub("", text.lower()))
    return clean_caption(text, cleaning)


def _first_words(text: str) -> str:
    return " ".join(text.strip().split(" ")[:MAX_WORDS])
