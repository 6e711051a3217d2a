"""Results files: they hold what is needed to trust a figure, and two of them are compared fairly."""

import copy
import json

import numpy as np
import pytest

from experiments.results import compare_results, read_results
from stgt_jax.errors import STGTError


@pytest.fixture(scope="module")
def written(run_stgt, trained_run, shards, tmp_path_factory):
    """Two results files of the same split, the second with shuffled frames; and what the first command printed."""
    folder, printed = tmp_path_factory.mktemp("results"), ""
    for name, options in (("first", []), ("second", ["--shuffle-frames"])):
        words = ["eval", "retrieval", "--checkpoint", trained_run, "--shards", shards, "--split", "train"]
        done = run_stgt(*words, "--k-test", "4", "--results", folder / f"{name}.json", *options)
        assert done.returncode == 0, done.stderr
        printed = printed or done.stdout
    return folder, printed


def test_file_holds_figures_queries_and_what_they_depend_on(written, shards):
    folder, printed = written
    content = read_results(folder / "first.json")
    assert content["split"] == "train" and content["num_videos"] == 16 and content["dtype"] == "float32"
    assert content["preparation"]["frame_shape"] == "keep_aspect" and content["preparation"]["clean_text"] == "none"
    assert len(content["data_sha256"]) == len(content["weights_fingerprint"]) == 64
    assert content["command"].startswith("stgt eval retrieval --checkpoint ") and content["rule"] == "probability"
    assert f"split train of {shards}" in printed and "dual softmax" in printed and "time: videos" in printed
    for direction, prefix in (("text_to_video", "t2v"), ("video_to_text", "v2t")):
        queries = content["queries"][direction]
        for ranks, metrics in (("rank", "similarity"), ("reranked_rank", "reranked")):
            for k in (1, 5, 10):
                hits = np.mean([query[ranks] <= k for query in queries])
                assert content[metrics][f"{prefix}_r{k}"] == pytest.approx(100 * hits)


def test_command_compares_two_files(written, run_stgt, tmp_path):
    folder, _ = written
    words = ["eval", "compare", folder / "first.json", folder / "second.json", "--json", tmp_path / "x.json"]
    done = run_stgt(*words)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "x.json").read_text())
    assert len(figures) == 12 and "text to video, re-ranked, R@1" in figures and "95 % interval" in done.stdout
    for one in figures.values():
        assert one["low"] <= one["second"] - one["first"] <= one["high"]


def example(ranks):
    queries = [{"video": str(i // 2), "rank": int(rank), "reranked_rank": 1} for i, rank in enumerate(ranks)]
    videos = [{"video": str(i), "rank": 1, "reranked_rank": 1} for i in range(len(ranks) // 2)]
    return {
        "schema": 1, "data_sha256": "a", "num_videos": len(videos), "num_texts": len(queries),
        "queries": {"text_to_video": queries, "video_to_text": videos},
    }  # fmt: skip


def test_interval_is_that_of_videos_drawn_with_their_captions():
    rng = np.random.default_rng(0)
    first, second = rng.integers(1, 4, 400), rng.integers(1, 3, 400)
    found = {one.metric: one for one in compare_results(example(first), example(second), resamples=4000)}
    one = found["text to video, R@1"]
    gains = ((second == 1).astype(float) - (first == 1)).reshape(200, 2).mean(1)
    half = 1.96 * 100 * gains.std() / np.sqrt(200)
    assert one.second - one.first == pytest.approx(100 * gains.mean())
    assert one.low == pytest.approx(100 * gains.mean() - half, abs=0.15 * half)
    assert one.high == pytest.approx(100 * gains.mean() + half, abs=0.15 * half)
    same = compare_results(example(first), example(first))
    assert all(one.low == one.high == 0.0 for one in same)
    assert compare_results(example(first), example(second)) == compare_results(example(first), example(second))


def test_other_data_and_other_files_are_refused(tmp_path, written):
    first = example([1, 2, 1, 1])
    other = copy.deepcopy(first) | {"data_sha256": "b"}
    with pytest.raises(STGTError, match="of other data: data_sha256 is a and b; measure both on the same split"):
        compare_results(first, other)
    with pytest.raises(STGTError, match="is missing or not JSON"):
        read_results(tmp_path / "none.json")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(STGTError, match="is not a results file of this version"):
        read_results(tmp_path / "x.json")
