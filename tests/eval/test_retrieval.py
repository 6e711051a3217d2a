"""Retrieval figures against brute force, and the evaluation of a tiny model against unbatched scoring."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from models_for_tests import tiny

from stgt_jax.config import MeshConfig
from stgt_jax.encoder import Encoder
from stgt_jax.errors import STGTError
from stgt_jax.eval.metrics import dual_softmax, retrieval_metrics, twin_metrics
from stgt_jax.eval.retrieval import (
    NOT_A_CANDIDATE,
    evaluate_retrieval,
    format_table,
    format_time_order,
    time_order_metrics,
)
from stgt_jax.mesh import make_mesh
from stgt_jax.models.stgt import STGT


def brute_force_metrics(scores, owners):
    num_videos, num_texts = scores.shape
    t2v, v2t = [], []
    for text in range(num_texts):
        others = [v for v in range(num_videos) if v != owners[text]]
        t2v.append(1 + sum(scores[v, text] >= scores[owners[text], text] for v in others))
    for video in range(num_videos):
        best = max(scores[video, c] for c in range(num_texts) if owners[c] == video)
        v2t.append(1 + sum(scores[video, c] >= best for c in range(num_texts) if owners[c] != video))
    out = {}
    for prefix, ranks in (("t2v", t2v), ("v2t", v2t)):
        for k in (1, 5, 10):
            out[f"{prefix}_r{k}"] = 100 * sum(r <= k for r in ranks) / len(ranks)
        out[f"{prefix}_median_rank"], out[f"{prefix}_mean_rank"] = np.median(ranks), sum(ranks) / len(ranks)
    return out


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_brute_force_with_several_captions_and_ties(seed):
    rng = np.random.default_rng(seed)
    owners = rng.permutation(np.concatenate([np.arange(20), rng.integers(0, 20, 30)]))
    scores = rng.normal(size=(20, 50)) + 1.5 * (np.arange(20)[:, None] == owners)
    scores = np.round(scores, 1) if seed % 2 else scores  # rounding makes ties
    assert retrieval_metrics(scores, owners) == pytest.approx(brute_force_metrics(scores, owners))


def test_perfect_scores_are_100_percent_and_rank_1():
    metrics = retrieval_metrics(np.eye(7), np.arange(7))
    assert all(value == (100.0 if "_r1" in key or "_r5" in key else 1.0) for key, value in metrics.items())


@pytest.mark.parametrize("value", [0.3, np.nan])
def test_constant_or_nan_scores_count_against_the_model(value):
    metrics = retrieval_metrics(np.full((12, 12), value), np.arange(12))
    assert metrics["t2v_r10"] == metrics["v2t_r10"] == 0.0
    assert metrics["t2v_median_rank"] == metrics["v2t_mean_rank"] == 12.0


def test_random_scores_stay_near_chance():
    scores = np.random.default_rng(0).normal(size=(400, 400))
    metrics = retrieval_metrics(scores, np.arange(400))
    assert metrics["t2v_r10"] < 6.0  # chance: 2.5
    assert 170 < metrics["v2t_mean_rank"] < 231


def test_best_ranked_caption_counts_for_video_to_text():
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.3, 0.8]])  # the second caption of video 0 is scored badly
    metrics = retrieval_metrics(scores, np.array([0, 0, 1]))
    assert metrics["v2t_r1"] == 100.0
    assert metrics["t2v_r1"] == pytest.approx(200 / 3)  # as a query of its own it fails


@pytest.mark.parametrize("owners", [[0, 1, 1], [0, 1, 3], [0, 1], [0.0, 1.0, 2.0]])
def test_captions_that_do_not_cover_the_gallery_are_an_error(owners):
    with pytest.raises(STGTError, match="video_of_text"):
        retrieval_metrics(np.zeros((3, 3)), np.array(owners))


def test_twin_accuracy_looks_only_inside_the_group():
    groups = ["a", "a", "b", "b", "", "c"]
    scores = np.zeros((6, 6))
    scores[0, 0], scores[1, 1] = 1.0, 1.0  # both of group a know their own caption
    scores[2, 3], scores[3, 3] = 1.0, 1.0  # of group b only the second does
    scores[:, 4] = 5.0  # a caption of no group beats them all and must not matter
    metrics = twin_metrics(scores, scores, np.arange(6), groups)
    assert metrics["num_texts"] == 4
    assert metrics["twin_accuracy"] == 75.0
    assert metrics["twin_chance"] == 50.0
    assert metrics["t2v_r1"] == 50.0


@pytest.mark.parametrize("members", [2, 3])
def test_twin_accuracy_of_constant_scores_is_chance(members):
    scores = np.zeros((members, members))
    metrics = twin_metrics(scores, scores, np.arange(members), ["g"] * members)
    assert metrics["twin_accuracy"] == pytest.approx(metrics["twin_chance"]) == pytest.approx(100 / members)


def test_captions_of_the_same_video_are_no_twins():
    metrics = twin_metrics(np.zeros((2, 3)), np.zeros((2, 3)), np.array([0, 0, 1]), ["g", "g", ""])
    assert metrics["num_texts"] == 0
    assert np.isnan(metrics["twin_accuracy"])


NUM_VIDEOS, OWNERS = 9, np.array([0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8])  # the first video has three captions
NUM_TEXTS = len(OWNERS)


def make_records(seed=0):
    """The videos and captions of a gallery."""
    config = tiny()
    rng = np.random.default_rng(seed)
    size, length = config.vision.image_size, 10
    lengths = rng.integers(3, length + 1, NUM_TEXTS)
    ids = rng.integers(5, 60, (NUM_TEXTS, length))
    mask = np.arange(length) < lengths[:, None]
    return {
        "video": rng.integers(0, 256, (NUM_VIDEOS, 4, size, size, 3), dtype=np.uint8),
        "video_id": np.array([f"v{i}.mp4" for i in range(NUM_VIDEOS)], dtype=object),
        "group": np.array(["g" if i in (1, 2) else "" for i in range(NUM_VIDEOS)], dtype=object),
        "input_ids": np.where(mask, ids, 0).astype(np.int32),
        "attention_mask": mask.astype(np.int32),
        "caption": np.array([f"caption {i}" for i in range(NUM_TEXTS)], dtype=object),
    }


def make_batches(records, batch_size=4, padding=255):
    """Batches as the loader gives them; padding clips hold rubbish that must not be read."""
    for start in range(0, NUM_VIDEOS, batch_size):
        batch = {name: records[name][start : start + batch_size] for name in ("video", "video_id", "group")}
        missing = batch_size - len(batch["video"])
        batch = {k: np.concatenate([v, np.repeat(v[:1], missing, axis=0)]) for k, v in batch.items()}
        if missing:
            batch["video"][-missing:] = padding
            batch["video_id"][-missing:] = "padding"
        texts = (start <= OWNERS) & (start + batch_size > OWNERS)
        batch |= {name: records[name][texts] for name in ("input_ids", "attention_mask", "caption")}
        yield {**batch, "row": OWNERS[texts] - start, "valid": np.arange(batch_size) < batch_size - missing}


@pytest.fixture(scope="module")
def model_and_params():
    model = STGT(tiny())
    first = next(make_batches(make_records()))
    texts = first["input_ids"][:4], first["attention_mask"][:4]
    params = jax.jit(model.init)(jax.random.key(0), first["video"], *texts)["params"]
    return model, params


def make_encoder(model_and_params, batch_size=4, mesh=None):
    model, params = model_and_params
    return Encoder(model.config, params, batch_size=batch_size, mesh=mesh)


@pytest.fixture(scope="module")
def result(model_and_params):
    return evaluate_retrieval(make_encoder(model_and_params), make_batches(make_records()), k_test=3)


def test_gallery_holds_each_video_once_and_every_caption(result):
    assert result.video_ids == tuple(f"v{i}.mp4" for i in range(NUM_VIDEOS))
    assert result.captions == tuple(f"caption {i}" for i in range(NUM_TEXTS))
    assert result.groups == ("", "", "", "g", "g", *6 * [""])
    assert result.video_of_text.tolist() == OWNERS.tolist()
    assert result.similarity.shape == (NUM_VIDEOS, NUM_TEXTS)


def test_scores_equal_unbatched_brute_force(model_and_params, result):
    model, params = model_and_params
    records, variables = make_records(), {"params": params}
    encode = jax.jit(lambda video: model.apply(variables, video, method="encode_video"))
    videos = [encode(records["video"][[row]]) for row in range(NUM_VIDEOS)]
    ids, mask = records["input_ids"], records["attention_mask"]
    encode_text = jax.jit(lambda i, m: model.apply(variables, i, m, method="encode_text")["text_embed"][0])
    texts = [encode_text(ids[[c]], mask[[c]]) for c in range(NUM_TEXTS)]
    match = jax.jit(lambda tokens, i, m: model.apply(variables, tokens, i, m, method="match"))
    scores = np.array([[(video["video_embed"][0] @ text).max() for text in texts] for video in videos])
    np.testing.assert_allclose(result.similarity, scores, atol=1e-5)

    def reranked(query_axis):
        out = np.full(scores.shape, NOT_A_CANDIDATE)
        for query in range(scores.shape[query_axis]):
            for candidate in np.argsort(-np.take(scores, query, axis=query_axis))[:3]:
                v, c = (query, candidate) if query_axis == 0 else (candidate, query)
                logits = match(videos[v]["graph_tokens"], ids[[c]], mask[[c]])
                out[v, c] = scores[v, c] + jax.nn.softmax(logits)[0, 1]
        return out

    np.testing.assert_allclose(result.video_to_text, reranked(query_axis=0), atol=1e-5)
    np.testing.assert_allclose(result.text_to_video, reranked(query_axis=1), atol=1e-5)


def test_padding_rows_never_enter(model_and_params, result):
    other = evaluate_retrieval(make_encoder(model_and_params), make_batches(make_records(), padding=0), k_test=3)
    assert "padding" not in result.video_ids
    np.testing.assert_array_equal(result.similarity, other.similarity)
    np.testing.assert_array_equal(result.text_to_video, other.text_to_video)


def test_gallery_smaller_than_k_reranks_everything(model_and_params):
    result = evaluate_retrieval(make_encoder(model_and_params), make_batches(make_records()), k_test=32)
    np.testing.assert_array_equal(result.text_to_video, result.video_to_text)
    gain = result.text_to_video - result.similarity
    assert gain.min() > 0.0
    assert gain.max() < 1.0


def test_second_evaluation_compiles_nothing(model_and_params, result, caplog):
    _, params = model_and_params
    with jax.log_compiles():
        # An equal model built anew, as a later validation or another part of the program may hold it.
        evaluate_retrieval(Encoder(tiny(), params, batch_size=4), make_batches(make_records(1)), k_test=3)
    assert not [record for record in caplog.records if "Compiling" in record.message]


def test_sharded_evaluation_equals_unsharded(model_and_params, result):
    encoder = make_encoder(model_and_params, mesh=make_mesh(MeshConfig(data=4, tensor=2)))
    sharded = evaluate_retrieval(encoder, make_batches(make_records()), k_test=3)
    np.testing.assert_allclose(result.text_to_video, sharded.text_to_video, atol=1e-5)


def test_figures_are_json_and_the_tables_name_every_row(result):
    figures = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert figures["num_videos"] == 9
    assert set(figures["similarity"]) == set(figures["reranked"])
    assert figures["time_order"] == json.loads(json.dumps(time_order_metrics(result)))
    table = format_table(result)
    for label in ("9 videos, 11 captions", "text to video, re-ranked", "video to text ", "R@10", "MedR", "MeanR"):
        assert label in table
    control = format_time_order({"true order": result, "shuffled": result})
    assert "2 captions differ from another one only in the order of events" in control
    assert "shuffled" in control


def test_no_clip_or_a_bad_option_is_one_line(model_and_params):
    with pytest.raises(STGTError, match="no clip"):
        evaluate_retrieval(make_encoder(model_and_params), [])
    with pytest.raises(STGTError, match="k_test=0"):
        evaluate_retrieval(make_encoder(model_and_params), make_batches(make_records()), k_test=0)


def test_video_without_a_caption_is_named(model_and_params):
    batches = [{**batch, "row": batch["row"] + (batch["row"] == 3)} for batch in make_batches(make_records())]
    with pytest.raises(STGTError, match=r"video 'v3\.mp4' has no caption"):
        evaluate_retrieval(make_encoder(model_and_params), batches)


@pytest.mark.parametrize("axis", [0, 1])
def test_dual_softmax_favours_the_query_that_fits_best(axis):
    scores = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
    ours = dual_softmax(scores, 0.07, axis=axis)
    expected = np.zeros_like(scores, np.float64)
    for place in np.ndindex(scores.shape):
        queries = scores[:, place[1]] if axis == 0 else scores[place[0]]
        others = np.exp((queries.astype(np.float64) - scores[place]) / 0.07).sum()
        expected[place] = scores[place] / others
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_rule_of_lavis_adds_the_logit(model_and_params):
    encoder = make_encoder(model_and_params)
    by_probability, by_logit = (
        evaluate_retrieval(encoder, make_batches(make_records()), k_test=3, rule=rule)
        for rule in ("probability", "logit")
    )
    np.testing.assert_array_equal(by_logit.similarity, by_probability.similarity)
    chosen = by_probability.text_to_video != NOT_A_CANDIDATE
    np.testing.assert_array_equal(chosen, by_logit.text_to_video != NOT_A_CANDIDATE)
    added, logits = ((one.text_to_video - one.similarity)[chosen] for one in (by_probability, by_logit))
    assert (added > 0).all() and (added < 1).all() and np.abs(logits).max() > 0
    assert np.corrcoef(np.argsort(np.argsort(added)), np.argsort(np.argsort(logits)))[0, 1] > 0.5
    assert "re-ranked by logit" in format_table(by_logit) and "dual softmax" in format_table(by_logit)


def test_captions_of_several_videos_are_counted(model_and_params):
    result = evaluate_retrieval(make_encoder(model_and_params), make_batches(make_records()), k_test=3)
    assert result.num_shared_captions == 0 and "of several videos" not in format_table(result)
    captions = (result.captions[0], *result.captions[:-1])
    shared = dataclasses.replace(result, captions=captions)
    owners = result.video_of_text
    expected = 2 if owners[0] != owners[1] else 0
    assert shared.num_shared_captions == expected
    same_for_all = dataclasses.replace(result, captions=("a", *["b"] * (len(captions) - 1)))
    assert same_for_all.num_shared_captions == len(captions) - 1
    assert f"{len(captions) - 1} captions are those of several videos" in format_table(same_for_all)
    assert result.seconds.keys() == {"videos", "texts", "re-ranking"} and "time: videos" in format_table(result)
