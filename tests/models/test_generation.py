"""Captions: the cached decoder is the decoder, and each method finds what a plain one finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_for_tests import tiny

from stgt_jax.config import GenerationConfig
from stgt_jax.errors import STGTError
from stgt_jax.models.generation import generate
from stgt_jax.models.stgt import PAD_TOKEN_ID, STGT, param_shapes

pytestmark = pytest.mark.slow
CONFIG = tiny()
DEC, SEP = CONFIG.qformer.dec_token_id, CONFIG.qformer.sep_token_id
BATCH, LENGTH = 3, 7


@pytest.fixture(scope="module")
def decoder():
    """The model, its parameters, the cache of three videos, and their next-token logits without a cache."""
    model = STGT(CONFIG)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype), param_shapes(model))
    params["qformer"]["lm_bias"][SEP] += 2.0  # so that captions end at different lengths
    side = CONFIG.vision.image_size
    video = rng.integers(0, 255, (BATCH, CONFIG.num_frames, side, side, 3), np.uint8)
    cache = model.apply({"params": params}, video, method="encode_video")["query_cache"]
    apply = jax.jit(lambda ids: model.apply({"params": params}, cache, ids, jnp.ones_like(ids), method="decode"))
    known = {}

    def logits(video, tokens):
        """Of the token after `tokens`, for one video: computed anew from all tokens."""
        if (video, tokens) not in known:
            ids = np.zeros((BATCH, LENGTH), np.int32)
            ids[:, : len(tokens)] = tokens
            for row, of_row in enumerate(np.asarray(apply(ids), np.float64)[:, len(tokens) - 1]):
                known[row, tokens] = of_row
        return known[video, tokens]

    return model, params, cache, logits


def run(decoder, seed=0, **options):
    model, params, cache, _ = decoder
    config = GenerationConfig(**{"min_length": 0, "max_length": LENGTH, **options})
    rng = jax.random.key(seed)
    ids, scores = jax.jit(lambda p, c: generate(model, p, c, config, rng))(params, cache)
    ids = np.asarray(ids)
    assert ids.shape == (BATCH, config.num_captions, config.max_length) and (ids[..., 0] == DEC).all()
    return [[unpadded(row) for row in of_video] for of_video in ids], np.asarray(scores)


def unpadded(row):
    """The tokens up to [SEP]; after it there is padding alone."""
    ends = np.flatnonzero(row == SEP)
    last = ends[0] if len(ends) else len(row) - 1
    assert (row[last + 1 :] == PAD_TOKEN_ID).all()
    return tuple(row[: last + 1].tolist())


def log_softmax(logits):
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def limited(scores, tokens, min_length=0, penalty=1.0):
    scores = scores.copy()
    for token in set(tokens):
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    if len(tokens) < min_length:
        scores[SEP] = -np.inf
    return scores


def greedy(logits, video, **limits):
    tokens = (DEC,)
    while tokens[-1] != SEP and len(tokens) < LENGTH:
        tokens += (int(limited(logits(video, tokens), tokens, **limits).argmax()),)
    return tokens


def beam_search(logits, video, width, power=1.0, **limits):
    """A plain beam search; returns (score, tokens), the best first."""
    live, ended = [(0.0, (DEC,))], []
    for length in range(1, LENGTH):
        found = []
        for total, tokens in live:
            scores = limited(log_softmax(logits(video, tokens)), tokens, **limits)
            found += [(total + scores[token], (*tokens, token)) for token in np.argsort(-scores)[: 2 * width].tolist()]
        found = sorted(found, key=lambda one: -one[0])[: 2 * width]
        ended += [(total / length**power, tokens) for total, tokens in found if tokens[-1] == SEP]
        live = [one for one in found if one[1][-1] != SEP][:width]
    ended += [(total / (LENGTH - 1) ** power, tokens) for total, tokens in live]
    return sorted(ended, key=lambda one: -one[0])


def test_cached_step_gives_the_logits_of_the_whole_pass(decoder):
    model, params, cache, _ = decoder
    tokens = np.random.default_rng(1).integers(5, 60, (BATCH, LENGTH))
    tokens[:, 0] = DEC
    variables = {"params": params}
    for i in range(LENGTH - 1):
        ours, kept = model.apply(variables, cache if i == 0 else None, jnp.asarray(tokens[:, i]), i, length=LENGTH,
                                 method="decode_step", mutable=["cache"])  # fmt: skip
        variables = {"params": params, **kept}
        ids = np.zeros((BATCH, LENGTH), np.int32)
        ids[:, : i + 1] = tokens[:, : i + 1]
        whole = model.apply({"params": params}, cache, ids, np.ones_like(ids), method="decode")[:, i]
        np.testing.assert_allclose(ours, whole, atol=2e-5 * np.abs(whole).max())


@pytest.mark.parametrize("limits", [{}, {"min_length": 5}, {"penalty": 1.5}, {"min_length": 4, "penalty": 3.0}])
def test_greedy_takes_the_most_probable_tokens(decoder, limits):
    options = {"min_length": limits.get("min_length", 0), "repetition_penalty": limits.get("penalty", 1.0)}
    captions, _ = run(decoder, method="greedy", **options)
    assert [of_video[0] for of_video in captions] == [greedy(decoder[3], video, **limits) for video in range(BATCH)]


@pytest.mark.parametrize("width", [1, 3, 5])
@pytest.mark.parametrize(
    ("power", "limits"), [(1.0, {}), (0.0, {}), (2.0, {"min_length": 4}), (-1.0, {}), (1.0, {"penalty": 1.5})]
)
def test_beam_search_finds_what_a_plain_one_finds(decoder, width, power, limits):
    options = {"min_length": limits.get("min_length", 0), "repetition_penalty": limits.get("penalty", 1.0)}
    captions, scores = run(decoder, method="beam", num_beams=width, num_captions=width, length_penalty=power, **options)
    for video in range(BATCH):
        expected = beam_search(decoder[3], video, width, power, **limits)[:width]
        assert captions[video] == [tokens for _, tokens in expected]
        np.testing.assert_allclose(scores[video], [score for score, _ in expected], rtol=1e-4, atol=1e-5)


def test_nucleus_draws_from_the_most_probable_tokens(decoder):
    captions, _ = run(decoder, method="nucleus", top_p=1e-6)
    assert [of_video[0] for of_video in captions] == [greedy(decoder[3], video) for video in range(BATCH)]
    many, scores = run(decoder, method="nucleus", top_p=0.7, num_captions=64)
    assert (np.diff(scores, axis=1) <= 0).all()
    for video, of_video in enumerate(many):
        assert len(set(of_video)) > 1
        for tokens in set(of_video):
            for i in range(1, len(tokens)):
                probabilities = np.exp(log_softmax(decoder[3](video, tokens[:i])))
                more = probabilities[probabilities > probabilities[tokens[i]]].sum()
                assert more < 0.7 + 1e-5
    same, other = run(decoder, method="nucleus", num_captions=8), run(decoder, seed=1, method="nucleus", num_captions=8)
    assert same[0] == run(decoder, method="nucleus", num_captions=8)[0] and same[0] != other[0]


def test_frequencies_of_drawn_tokens_are_their_probabilities(decoder):
    captions, _ = run(decoder, method="nucleus", top_p=0.8, num_captions=4096, max_length=2)
    for video, of_video in enumerate(captions):
        probabilities = np.exp(log_softmax(decoder[3](video, (DEC,))))
        order = np.argsort(-probabilities)
        kept = order[: np.searchsorted(np.cumsum(probabilities[order]), 0.8) + 1]
        expected = np.zeros_like(probabilities)
        expected[kept] = probabilities[kept] / probabilities[kept].sum()
        drawn = np.bincount([tokens[1] for tokens in of_video], minlength=len(probabilities)) / 4096
        assert np.abs(drawn - expected).max() < 0.03 and not drawn[expected == 0].any()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"method": "best"}, "generation.method"),
        ({"num_captions": 4}, "num_captions=4 is more than generation.num_beams=3"),
        ({"method": "greedy", "num_captions": 2}, "greedy decoding writes one"),
        ({"min_length": 30}, "min_length=30 must be less than generation.max_length=30"),
        ({"max_length": 1, "min_length": 0}, "max_length=1 must be at least 2"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be greater than 0"),
    ],
)
def test_options_that_do_not_fit_are_named(options, complaint):
    with pytest.raises(STGTError, match=complaint):
        GenerationConfig(**options)


def test_captions_do_not_depend_on_each_other(decoder):
    model, params, cache, _ = decoder
    config = GenerationConfig(min_length=3, max_length=LENGTH)
    together = generate(model, params, cache, config)[0]
    for video in range(BATCH):
        alone = jax.tree.map(lambda x, v=video: jax.lax.dynamic_slice_in_dim(x, v, 1, axis=-3), cache)
        np.testing.assert_array_equal(generate(model, params, alone, config)[0][0], together[video])
