"""A run's folder in use: what is refused when shards, weights or options are not those of the run."""

import shutil
from pathlib import Path

import pytest
from small_recipe import SMALL

from data_pipeline.build import build_shards
from data_pipeline.moving_shapes import make_moving_shapes
from data_pipeline.shards import hash_file
from stgt_jax.run_folder import read_run

BUILD = {"num_kept_frames": 4, "resize": 32, "max_text_length": 24, "num_workers": 0, "progress": False}


def pretrain(stage: int, workdir: Path, shards: Path, *options: str) -> list[str]:
    recipe = f"moving_shapes_stage{stage}"
    return ["pretrain", recipe, "--workdir", str(workdir), "--data.shards", str(shards), *SMALL, *options]


def evaluate(workdir: Path, shards: Path) -> list[str]:
    return ["eval", "retrieval", "--checkpoint", str(workdir), "--shards", str(shards), "--k-test", "2"]


@pytest.fixture(scope="module")
def reordered(shards, tmp_path_factory):
    """The same clips and words, but two words have changed places in the vocabulary."""
    folder = tmp_path_factory.mktemp("reordered")
    words = (shards / "vocab.txt").read_text().splitlines()
    words[-1], words[-2] = words[-2], words[-1]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    for split in ("train", "test"):
        captions = shards.parent / "clips" / split / "captions.csv"
        build_shards(captions, folder / "shards", split=split, vocab=folder / "vocab.txt", **BUILD)
    return folder / "shards"


@pytest.fixture(scope="module")
def other_clips(shards, tmp_path_factory):
    """As many other clips, with the same vocabulary; larger test frames."""
    folder = tmp_path_factory.mktemp("other")
    make_moving_shapes(folder / "clips", num_train=16, num_test=4, image_size=32, num_frames=8, seed=1, progress=False)
    for split in ("train", "test"):
        options = BUILD | {"resize": 32 if split == "train" else 40, "vocab": shards / "vocab.txt"}
        build_shards(folder / "clips" / split / "captions.csv", folder / "shards", split=split, **options)
    return folder / "shards"


def test_folder_holds_what_is_needed_to_use_it_alone(trained_run, shards):
    description = read_run(trained_run)
    assert description.vocab_file.read_bytes() == (shards / "vocab.txt").read_bytes()
    assert description.vocab_sha256 == hash_file(shards / "vocab.txt")
    assert (description.preparation.num_kept_frames, description.preparation.resize) == (4, 32)
    assert description.model.num_frames == 2
    assert description.content["shards"]["train"]["num_records"] == 16
    assert description.content["shards"]["train"]["manifest_sha256"] == hash_file(shards / "train" / "manifest.json")
    assert description.content["weights_origin"] == {}


def test_shards_of_another_vocabulary_are_refused_everywhere(trained_run, reordered, shards, tmp_path, error_of):
    hashes = [hash_file(folder / "vocab.txt")[:8] for folder in (shards, reordered)]
    for command in (
        evaluate(trained_run, reordered),
        pretrain(1, trained_run, reordered, "--resume", "--allow-changes"),
        pretrain(2, tmp_path / "stage2", reordered, "--weights.initial", str(trained_run)),
    ):
        line = error_of(*command)
        assert "another vocabulary" in line and all(
            word in line for word in (str(trained_run), str(reordered), *hashes)
        )
    assert not (tmp_path / "stage2").exists()


def test_frames_prepared_in_another_way_are_scored_with_a_warning(trained_run, other_clips, run_stgt):
    done = run_stgt(*evaluate(trained_run, other_clips))
    assert done.returncode == 0 and "text to video" in done.stdout
    assert f"'{other_clips}' was built with resize=40, the training shards with resize=32" in done.stderr


def test_captions_longer_than_the_model_reads_are_refused(trained_run, shards, tmp_path, error_of):
    captions = shards.parent / "clips" / "test" / "captions.csv"
    long = BUILD | {"vocab": shards / "vocab.txt", "max_text_length": 40}
    build_shards(captions, tmp_path / "shards", split="test", **long)
    assert "have 40 tokens, and the model" in error_of(*evaluate(trained_run, tmp_path / "shards"))


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ({"max_text_length": 40}, "max_text_length=32 is less than the 40 tokens of a caption in split 'test'"),
        ({"num_kept_frames": 1}, "more than the 1 frames"),
    ],
)
def test_validation_clips_that_do_not_fit_are_refused_before_training(shards, tmp_path, error_of, option, complaint):
    captions, own = shards.parent / "clips" / "test" / "captions.csv", shutil.copytree(shards, tmp_path / "shards")
    build_shards(captions, own, split="test", overwrite=True, **BUILD | option)
    assert complaint in error_of(*pretrain(1, tmp_path / "run", own))
    assert not (tmp_path / "run").exists()


def test_run_goes_on_with_its_own_clips_wherever_they_lie(
    trained_run, shards, other_clips, tmp_path, error_of, run_stgt
):
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    before = (run / "config.json").read_bytes()
    line = error_of(*pretrain(1, run, other_clips, "--resume"))
    assert "shards.train.manifest_sha256 was" in line and "--allow-changes" in line
    assert "cannot change its model: model.graph.num_heads was 4, now 2" in error_of(
        *pretrain(1, run, shards, "--resume", "--graph.num_heads=2")
    )
    assert (run / "config.json").read_bytes() == before
    moved = shutil.copytree(shards, tmp_path / "moved")
    assert run_stgt(*pretrain(1, run, moved, "--resume", "--log_every=1")).returncode == 0
    assert read_run(run).content["data"]["shards"] == str(moved)


def test_second_stage_needs_the_model_of_its_weights(trained_run, shards, tmp_path, error_of):
    stage2 = pretrain(2, tmp_path / "stage2", shards, "--weights.initial", str(trained_run))
    assert "of another model: model.graph.num_heads was 4, now 2; give the same" in error_of(
        *stage2, "--graph.num_heads=2", "--allow-changes"
    )
    line = error_of(*stage2, "--sim_threshold=0.5")
    assert "model.graph.sim_threshold was 0.8, now 0.5; give the same, or --allow-changes" in line
    assert not (tmp_path / "stage2").exists()
