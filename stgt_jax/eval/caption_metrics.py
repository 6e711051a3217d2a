"""Caption metrics: BLEU-4, ROUGE-L and CIDEr-D, as coco-caption computes them (docs/tasks.md).

The usual package needs Java. What is here takes the same steps, and the tests compare it with that package's scorers.
All figures are in percent. Letters: V videos.

Papineni et al., "BLEU", 2002; Lin, "ROUGE", 2004; Vedantam et al., "CIDEr", arXiv 1411.5726.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from stgt_jax.errors import STGTError

_MAX_ORDER = 4  # words of the longest n-gram
_ROUGE_BETA = 1.2  # weight of the recall
_CIDER_SIGMA = 6.0  # of the penalty for another length
_TINY, _SMALL = 1e-15, 1e-9  # added by coco-caption, so that nothing is divided by zero

_JOINED = re.compile(r"\b(can)(not)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b|(\w)(n't|'(?:s|re|ve|ll|d|m))\b")
_WORD = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|[^\W_](?:[\w.,'/-]*[^\W_])?|[$%&#@+=*]")

Words = Sequence[str]
_Grams = Counter[tuple[str, ...]]


def split_words(text: str) -> list[str]:
    """Splits a text as coco-caption does: lower case, `don't` as `do n't`, without punctuation."""
    apart = _JOINED.sub(lambda found: " ".join(filter(None, found.groups())), text.lower().replace("’", "'"))
    return _WORD.findall(apart)


def caption_metrics(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compares the caption of each of V videos with its references.

    Returns:
      "bleu_4" of all captions together, "rouge_l" and "cider_d", the means of `caption_scores`.

    Raises:
      STGTError: there is no video, or one has no reference.
    """
    scores = caption_scores(captions, references)
    written, wanted = _split_all(captions, references)
    return {"bleu_4": 100.0 * bleu(written, wanted)} | {name: float(values.mean()) for name, values in scores.items()}


def caption_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Returns "rouge_l" and "cider_d" of each video, float64 [V]. Raises what `caption_metrics` raises."""
    written, wanted = _split_all(captions, references)
    return {"rouge_l": 100.0 * rouge_l(written, wanted), "cider_d": 100.0 * cider_d(written, wanted)}


def _split_all(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[list[str]], list[list[list[str]]]]:
    if not captions or len(captions) != len(references) or not all(references):
        raise STGTError(f"{len(captions)} captions, {len(references)} lists of references; every video needs both")
    return [split_words(text) for text in captions], [[split_words(text) for text in texts] for texts in references]


def bleu(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """BLEU-4 of a corpus, 0 to 1; the reference of the nearest length counts for the length."""
    right, total = [0] * _MAX_ORDER, [0] * _MAX_ORDER
    num_words, num_wanted = 0, 0
    for words, of_video in zip(captions, references, strict=True):
        num_words += len(words)
        num_wanted += min((abs(len(reference) - len(words)), len(reference)) for reference in of_video)[1]
        most: _Grams = Counter()
        for reference in of_video:
            most |= _grams(reference)
        for gram, count in (_grams(words) & most).items():
            right[len(gram) - 1] += count
        for order in range(_MAX_ORDER):
            total[order] += max(0, len(words) - order)
    precision = math.prod((r + _TINY) / (t + _SMALL) for r, t in zip(right, total, strict=True)) ** (1 / _MAX_ORDER)
    ratio = (num_words + _TINY) / (num_wanted + _SMALL)
    return precision * math.exp(1 - 1 / ratio) if ratio < 1 else precision


def rouge_l(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """ROUGE-L of each video, 0 to 1: from the longest common subsequences, the best precision and the best recall."""
    return np.array([_rouge_of_video(*pair) for pair in zip(captions, references, strict=True)])


def _rouge_of_video(words: Words, references: Sequence[Words]) -> float:
    common = [_common_length(words, reference) for reference in references]
    if not max(common):
        return 0.0
    precision = max(common) / len(words)
    recall = max(c / len(reference) for c, reference in zip(common, references, strict=True) if reference)
    return (1 + _ROUGE_BETA**2) * precision * recall / (recall + _ROUGE_BETA**2 * precision)


def _common_length(a: Words, b: Words) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = row
        row = [0]
        for i, y in enumerate(b):
            row.append(before[i] + 1 if x == y else max(before[i + 1], row[i]))
    return row[-1]


def cider_d(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """CIDEr-D of each video, 0 to 10. The n-grams' weights come from the references of all videos."""
    of_references = [[_grams(reference) for reference in of_video] for of_video in references]
    videos_with: _Grams = Counter()
    for of_video in of_references:
        videos_with.update({gram for grams in of_video for gram in grams})
    num_videos = math.log(len(references))

    def weighted(grams: _Grams) -> "_Weighted":
        return _Weighted(grams, {g: n * (num_videos - math.log(max(1, videos_with[g]))) for g, n in grams.items()})

    scores = []
    for words, of_video in zip(captions, of_references, strict=True):
        caption = weighted(_grams(words))
        scores.append(10.0 * np.mean([caption.agreement(weighted(grams)) for grams in of_video]))
    return np.array(scores)


class _Weighted:
    """The n-grams of a text with their TF-IDF weights."""

    def __init__(self, grams: _Grams, weights: dict[tuple[str, ...], float]) -> None:
        self.weights = weights
        self.length = sum(n for gram, n in grams.items() if len(gram) == 2)  # coco-caption counts pairs of words
        squares = np.zeros(_MAX_ORDER)
        for gram, weight in weights.items():
            squares[len(gram) - 1] += weight**2
        self.norms = np.sqrt(squares)

    def agreement(self, reference: "_Weighted") -> float:
        """The clipped cosine with a reference, the mean over n, less for another length."""
        products = np.zeros(_MAX_ORDER)
        for gram, weight in self.weights.items():
            other = reference.weights.get(gram, 0.0)
            products[len(gram) - 1] += min(weight, other) * other
        norms = self.norms * reference.norms
        cosines = np.divide(products, norms, out=products, where=norms != 0)
        return float(cosines.mean()) * math.exp(-((self.length - reference.length) ** 2) / (2 * _CIDER_SIGMA**2))


def _grams(words: Words) -> _Grams:
    """How often each n-gram occurs, of up to four words."""
    return Counter(
        tuple(words[start : start + order])
        for order in range(1, _MAX_ORDER + 1)
        for start in range(len(words) - order + 1)
    )
