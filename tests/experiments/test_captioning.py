"""Captioning from the command line: captions of files, captions measured on a split, and fine-tuning for captioning."""

import json

import numpy as np
import pytest
from test_finetune import OPTIONS, with_val  # noqa: F401  (a fixture)

from experiments.recipes import get_recipe
from stgt_jax.eval.caption_metrics import caption_metrics
from stgt_jax.train.checkpoint import best_checkpoint

GREEDY = ["--method", "greedy", "--min-length", "0", "--max-length", "12"]


def test_files_and_folders_are_captioned_and_unreadable_ones_listed(run_stgt, trained_run, shards, tmp_path):
    clips = shards.parent / "clips" / "test"
    broken = tmp_path / "videos" / "broken.mp4"
    broken.parent.mkdir()
    broken.write_bytes(b"no video")
    words = ["caption", clips, broken.parent, clips / "000001.mp4", "--checkpoint", trained_run, "--max-length", "12"]
    done = run_stgt(*words, "--num-captions", "2", "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert sorted(figures["captions"]) == [str(clips / f"00000{i}.mp4") for i in range(4)]
    assert all(len(of_video) == 2 for of_video in figures["captions"].values())
    assert [*figures["unreadable"]] == [str(broken)]
    assert str(clips / "000000.mp4") in done.stdout and "not read: video" in done.stdout


def test_nothing_to_caption_is_an_error(error_of, run_stgt, trained_run, tmp_path):
    assert "no video in" in error_of("caption", tmp_path, "--checkpoint", trained_run)
    done = run_stgt("caption", tmp_path / "a.mp4", "--checkpoint", trained_run)
    assert done.returncode == 2 and "missing: no such file" in done.stderr
    complaint = error_of("caption", tmp_path, "--checkpoint", trained_run, "--num-captions", "5")
    assert "generation.num_captions=5 is more than generation.num_beams=3" in complaint


@pytest.fixture(scope="module")
def measured(run_stgt, trained_run, shards, tmp_path_factory):
    """Two results files of the training split: greedy, and with three beams."""
    folder = tmp_path_factory.mktemp("captions")
    for name, options in (("greedy", GREEDY), ("beams", ["--min-length", "0", "--max-length", "12"])):
        words = ["eval", "captions", "--checkpoint", trained_run, "--shards", shards, "--split", "train"]
        done = run_stgt(*words, *options, "--encode-batch-size", "8", "--results", folder / f"{name}.json")
        assert done.returncode == 0, done.stderr
        assert "16 videos, 16 captions to compare with" in done.stdout and "CIDEr-D" in done.stdout
    return folder


def test_results_file_holds_every_caption_and_its_scores(measured):
    content = json.loads((measured / "greedy.json").read_text())
    items = content["items"]
    assert content["task"] == "captions" and len(items) == 16 and content["dtype"] == "float32"
    assert "--method greedy" in content["command"]
    captions, references = [item["captions"][0] for item in items], [item["references"] for item in items]
    assert content["metrics"] == pytest.approx(caption_metrics(captions, references))
    assert content["metrics"]["cider_d"] == pytest.approx(np.mean([item["scores"]["cider_d"] for item in items]))


def test_two_results_files_are_compared(measured, run_stgt, error_of, trained_run, shards, tmp_path):
    done = run_stgt("eval", "compare", measured / "greedy.json", measured / "beams.json", "--resamples", "100")
    assert done.returncode == 0, done.stderr
    assert "cider_d" in done.stdout and "rouge_l" in done.stdout
    words = ["eval", "retrieval", "--checkpoint", trained_run, "--shards", shards, "--split", "train"]
    assert run_stgt(*words, "--k-test", "4", "--results", tmp_path / "other.json").returncode == 0
    complaint = error_of("eval", "compare", str(measured / "greedy.json"), str(tmp_path / "other.json"))
    assert complaint == "the results are of captions and of retrieval; compare two of the same task"


def test_captions_longer_than_the_model_can_write_are_refused(run_stgt, trained_run, shards):
    words = ["eval", "captions", "--checkpoint", trained_run, "--shards", shards, "--max-length", "99"]
    done = run_stgt(*words)
    assert done.returncode == 2
    assert "generation.max_length=99 is more than the 32 tokens that the model can write" in done.stderr


def test_fine_tuning_chooses_the_best_checkpoint_by_cider(run_stgt, trained_run, with_val, tmp_path):  # noqa: F811
    words = ["finetune", "msrvtt_caption", "--workdir", tmp_path / "run", "--data.shards", with_val,
             "--weights.initial", trained_run, *OPTIONS, "--validation_k_test=1"]  # fmt: skip
    short = ["--generation.min_length=0", "--generation.max_length=12"]
    done = run_stgt(*words, *short, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss_vtg" in line]
    assert len(trained) == 4 and all("loss_contrastive" not in line for line in trained)
    scores = {line["step"]: line["validation/cider_d"] for line in lines if "validation/cider_d" in line}
    assert [*scores] == [2, 4] and scores[int(best_checkpoint(tmp_path / "run").name)] == max(scores.values())


def test_recipe_is_that_of_captioning(error_of):
    recipe = get_recipe("finetune_msrvtt_caption")
    assert recipe.train.loss.objective == "captioning" and recipe.train.best_metric == "cider_d"
    generation = recipe.generation
    assert (generation.method, generation.num_beams) == ("beam", 3)
    assert (generation.min_length, generation.max_length) == (10, 30)
    complaint = error_of("finetune", "msrvtt_caption", "--workdir", "x", "--best_metric", "t2v_r1")
    assert "train.best_metric=t2v_r1 does not belong to train.loss.objective=captioning" in complaint
    complaint = error_of("bench", "step", "finetune_msrvtt_caption")
    assert "train.loss.objective=captioning: the parts are those of alignment" in complaint
