"""Fine-tuning: passes over the captions, validation with re-ranking, and the best checkpoint."""

import json
import shutil

import pytest
from small_recipe import SMALL

from data_pipeline.build import build_shards
from experiments.recipes import get_recipe
from stgt_jax.train.checkpoint import best_checkpoint

# The published recipe with the sizes and the data of the small run that it starts from.
OPTIONS = [
    *SMALL, "--graph.num_heads=4", "--time_embed_rows=6", "--vision.num_heads=4", "--qformer.num_heads=4",
    "--qformer.max_text_length=32", "--dtype=float32", "--vocab_from_data=true", "--vision.freeze=false",
    "--frame_shape=keep_aspect", "--clean_text=none", "--validation_k_test=2", "--num_epochs=2", "--warmup_steps=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def with_val(shards, tmp_path_factory):
    """The shard set with a validation split."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    shutil.copytree(shards, folder)
    build_shards(
        shards.parent / "clips" / "test" / "captions.csv", folder, split="val", vocab=folder / "vocab.txt",
        num_kept_frames=4, resize=32, max_text_length=24, num_workers=0, progress=False,
    )  # fmt: skip
    return folder


def test_passes_validation_and_the_best_checkpoint(run_stgt, trained_run, with_val, tmp_path):
    words = ["finetune", "msrvtt", "--workdir", tmp_path / "run", "--data.shards", with_val, "--weights.initial",
             trained_run, *OPTIONS, "--sim_threshold=1"]  # fmt: skip
    done = run_stgt(*words, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    validated = {line["step"]: line for line in lines if "validation/t2v_r1" in line}
    assert list(validated) == [2, 4]  # 16 captions in batches of 8, twice
    for line in validated.values():
        recalls = [line[f"validation/reranked_t2v_r{k}"] for k in (1, 5, 10)]
        assert line["validation/reranked_t2v_mean_recall"] == pytest.approx(sum(recalls) / 3)
        assert line["validation/edges_between"] == 0  # no two patches of different frames are equal
    assert "warning: 0 % of the pairs of patches in neighbouring frames have an edge" in done.stderr
    scores = {step: line["validation/reranked_t2v_mean_recall"] for step, line in validated.items()}
    best = best_checkpoint(tmp_path / "run")
    assert scores[int(best.name)] == max(scores.values()) and figures["best_checkpoint"] == str(best)
    assert f"best checkpoint: {best}" in done.stdout
    content = json.loads((tmp_path / "run" / "config.json").read_text())
    assert content["train"]["num_steps"] == 4 and content["train"]["eval_every"] == 2
    assert content["train"]["loss"]["contrastive"] == "csal"
    done = run_stgt("eval", "retrieval", "--checkpoint", best, "--shards", with_val, "--split", "val", "--k-test", "2")
    assert done.returncode == 0, done.stderr


def test_cached_tokens_take_the_place_of_frames(run_stgt, trained_run, with_val, tmp_path):
    for split in ("train", "val"):
        words = [
            "data",
            "cache-tokens",
            "--checkpoint",
            trained_run,
            "--shards",
            with_val,
            "--out",
            tmp_path / "tokens",
        ]
        done = run_stgt(*words, "--split", split)
        assert done.returncode == 0, done.stderr
    words = ["finetune", "didemo", "--workdir", tmp_path / "run", "--data.shards", tmp_path / "tokens",
             "--weights.initial", trained_run, *OPTIONS]  # fmt: skip
    done = run_stgt(*words)
    assert done.returncode == 2 and "would train its own" in done.stderr
    done = run_stgt(*words, "--vision.freeze=true", "--num_epochs=1", "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert "validation/reranked_t2v_mean_recall" in figures and figures["best_checkpoint"].endswith("/2")


def test_the_test_split_is_not_chosen_on(error_of, trained_run, shards, tmp_path):
    words = ["finetune", "msvd", "--workdir", tmp_path / "run", "--data.shards", shards, *OPTIONS]
    assert "starts from the weights of an earlier stage" in error_of(*words)
    complaint = error_of(*words, "--weights.initial", trained_run)
    assert "has no split called validation or val, on which the best checkpoint is chosen" in complaint


def test_settings_that_do_not_fit_are_one_line(error_of, trained_run, with_val, tmp_path):
    words = ["finetune", "lsmdc", "--workdir", tmp_path / "run", "--data.shards", with_val, *OPTIONS,
             "--weights.initial", trained_run]  # fmt: skip
    assert "the 16 training captions fill no batch of train.batch_size=32" in error_of(*words, "--batch_size=32")
    assert "needs validation_k_test of at least 2, not 1" in error_of(*words, "--validation_k_test=1")
    assert "msvd_qa|moving_shapes_qa but got 'msr'" in error_of("finetune", "msr", *words[2:])


@pytest.mark.parametrize(("dataset", "epochs"), [("msrvtt", 9), ("msvd", 12), ("didemo", 9), ("lsmdc", 9)])
def test_recipes_have_the_published_settings(dataset, epochs):
    recipe = get_recipe(f"finetune_{dataset}")
    optimizer = recipe.train.optimizer
    assert (optimizer.peak_learning_rate, optimizer.end_learning_rate) == (2.5e-5, 1e-6)
    assert (optimizer.warmup_steps, optimizer.clip_norm, optimizer.beta2) == (0, 0.0, 0.98)
    assert recipe.num_epochs == epochs and recipe.train.loss.contrastive == "csal" and recipe.train.seed == 42
    assert recipe.model.graph.sim_threshold == 0.5 and recipe.data.epoch == "captions"
    assert recipe.train.best_metric == "reranked_t2v_mean_recall" and recipe.needs_validation_split
