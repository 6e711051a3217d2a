"""Caption metrics: equal to coco-caption's own scorers, and right where the answer is plain."""

import random

import numpy as np
import oracles
import pytest

from stgt_jax.errors import STGTError
from stgt_jax.eval.caption_metrics import bleu, caption_metrics, cider_d, rouge_l, split_words

WORDS = ["a", "the", "red", "circle", "square", "moves", "grows", "then", "left", "right", "to", "from", "and"]


def random_corpus(seed, num_videos, num_references):
    rng = random.Random(seed)

    def text(least=1):
        return [rng.choice(WORDS) for _ in range(rng.randint(least, 14))]

    references = [[text() for _ in range(rng.randint(1, num_references))] for _ in range(num_videos)]
    captions = [rng.choice([text(), rng.choice(of_video), rng.choice(of_video)[:-2]]) for of_video in references]
    return captions, references


@oracles.needs_coco_caption
@pytest.mark.parametrize(("seed", "num_videos", "num_references"), [(0, 1, 3), (1, 2, 1), (2, 40, 5), (3, 25, 20)])
def test_scores_equal_those_of_coco_caption(seed, num_videos, num_references):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    captions, references = random_corpus(seed, num_videos, num_references)
    written = {i: [" ".join(words)] for i, words in enumerate(captions)}
    wanted = {i: [" ".join(words) for words in of_video] for i, of_video in enumerate(references)}
    theirs = Bleu(4).compute_score(wanted, written, verbose=0)[0][3]
    assert bleu(captions, references) == pytest.approx(theirs, rel=1e-12, abs=1e-12)
    np.testing.assert_allclose(rouge_l(captions, references), Rouge().compute_score(wanted, written)[1], rtol=1e-12)
    theirs = Cider().compute_score(wanted, written)[1]
    np.testing.assert_allclose(cider_d(captions, references), theirs, rtol=1e-9, atol=1e-12)


def test_the_very_reference_is_best_and_an_empty_caption_worst():
    texts = ["a red circle moves to the left", "a blue square grows in size", "a star turns clockwise twice"]
    figures = caption_metrics(texts, [[text] for text in texts])
    assert figures["bleu_4"] == pytest.approx(100) and figures["rouge_l"] == pytest.approx(100)
    assert figures["cider_d"] == pytest.approx(1000)
    nothing = caption_metrics(["", "...", ""], [[text, ""] for text in texts])
    assert nothing == {"bleu_4": pytest.approx(0), "rouge_l": 0.0, "cider_d": 0.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man, who isn't old, rides.", "a man who is n't old rides"),
        ("The dog's black-and-white ball; 3.5 kg!", "the dog 's black-and-white ball 3.5 kg"),
        ("They can’t, cannot and won't stop", "they ca n't can not and wo n't stop"),
        ('"?" -- ...', ""),
    ],
)
def test_texts_are_split_as_coco_caption_splits_them(text, words):
    assert split_words(text) == words.split()


def test_video_without_a_reference_is_refused():
    with pytest.raises(STGTError, match="2 captions, 2 lists of references"):
        caption_metrics(["a", "b"], [["a"], []])
