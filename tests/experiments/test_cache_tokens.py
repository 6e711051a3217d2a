"""Token shards: a model gets from them what it gets from frames, and only from those of its own ViT."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from small_recipe import SMALL

import stgt_jax as stgt
from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.loader import eval_batches, train_loader
from data_pipeline.shards import open_shards
from data_pipeline.verify import verify_shards
from experiments.cache_tokens import cache_tokens, check_tokens, check_tokens_for_training
from experiments.commands.main import main
from stgt_jax.encoder import Encoder
from stgt_jax.errors import STGTError
from stgt_jax.fingerprint import fingerprint

BFLOAT16 = 2.0**-8  # relative rounding


@pytest.fixture(scope="module")
def model(trained_run):
    return stgt.load(trained_run)


@pytest.fixture(scope="module")
def tokens(trained_run, shards, tmp_path_factory):
    """The token shards of both splits; not to be changed."""
    out = tmp_path_factory.mktemp("tokens") / "set"
    for split in ("train", "test"):
        cache_tokens(trained_run, shards, out, split=split, videos_per_shard=3, progress=False)
    return out


def frames_of(model):
    return {"num_frames": model.config.num_frames, "image_size": model.config.vision.image_size}


def read(shards, model, split="test"):
    (batch,) = eval_batches(DataConfig(shards=str(shards)), split, 16 if split == "train" else 4, **frames_of(model))
    return batch


@pytest.mark.parametrize("split", ["train", "test"])
def test_evaluation_reads_the_tokens_of_the_frames_that_it_would_read(model, shards, tokens, split):
    from_frames, from_tokens = (read(folder, model, split) for folder in (shards, tokens))
    for name in from_frames.keys() - {"video"}:
        np.testing.assert_array_equal(from_tokens[name], from_frames[name])
    assert from_tokens["video"].dtype == ml_dtypes.bfloat16
    expected = np.stack(list(model.encoder.encode_frames(from_frames["video"])))
    np.testing.assert_array_equal(from_tokens["video"], expected)
    embeds = [model.encoder.embed_videos(batch["video"]) for batch in (from_frames, from_tokens)]
    np.testing.assert_allclose(embeds[1], embeds[0], atol=4 * BFLOAT16)
    assert np.abs((embeds[0] * embeds[1]).sum(-1) - 1).max() < 1e-3


def test_tokens_that_were_not_rounded_change_nothing(model, shards):
    video = jnp.asarray(read(shards, model)["video"])
    apply = jax.jit(lambda method, x: model.encoder.model.apply({"params": model.params}, x, method=method),
                    static_argnums=0)  # fmt: skip
    whole, from_tokens = apply("encode_video", video), apply("encode_video", apply("encode_frames", video))
    np.testing.assert_allclose(from_tokens["video_embed"], whole["video_embed"], atol=1e-6)


def test_token_shards_are_whole_and_say_whose_they_are(model, shards, tokens):
    for report in verify_shards(tokens, num_workers=0, progress=False):
        assert not report.problems and report.num_videos == {"train": 16, "test": 4}[report.split]
    settings = open_shards(tokens, "train").settings
    assert settings.encoding == "tokens" and settings.num_kept_frames == model.config.num_frames
    assert dataclasses.astuple(settings.tokens) == (
        fingerprint(model.params["vision"]), 16, "float32", model.config.vision.tokens_per_frame,
        model.config.vision.width,
    )  # fmt: skip
    assert (tokens / "vocab.txt").read_bytes() == (shards / "vocab.txt").read_bytes()


def test_training_batches_hold_tokens_and_resume(model, tokens):
    config = DataConfig(shards=str(tokens), num_workers=0, flip=True, rand_augment=True, crop_filter="bicubic")
    with train_loader(config, "train", 4, 0, **frames_of(model)) as loader:
        batches = [next(loader) for _ in range(6)]
        loader.set_state(loader.get_state() | {"next_batch": 4})
        again = [next(loader) for _ in range(2)]
    vision = model.config.vision
    shape = (4, model.config.num_frames, vision.tokens_per_frame, vision.width)
    assert all(batch["video"].shape == shape and batch["video"].dtype == ml_dtypes.bfloat16 for batch in batches)
    for batch, expected in zip(again, batches[4:], strict=True):
        np.testing.assert_array_equal(batch["video"], expected["video"])
    stored = {record.video_id: record for record in map(open_shards(tokens, "train").__getitem__, range(16))}
    held = [clip for batch in batches[:4] for clip in batch["video"]]
    for record in stored.values():  # an epoch: each once
        assert sum(np.array_equal(clip, record.frames.stored) for clip in held) == 1


def test_more_frames_than_the_model_takes_leave_a_choice(trained_run, model, shards, tmp_path):
    cache_tokens(trained_run, shards, tmp_path / "set", split="train", num_frames=4, progress=False)
    config = DataConfig(shards=str(tmp_path / "set"), num_workers=0, train_frame_sampling="headtail")
    assert model.config.num_frames == 2
    with train_loader(config, "train", 16, 0, **frames_of(model)) as loader:
        first, second = next(loader), next(loader)
    by_caption = [{tuple(ids): clip for ids, clip in zip(b["input_ids"].tolist(), b["video"], strict=True)}
                  for b in (first, second)]  # fmt: skip
    assert any(not np.array_equal(by_caption[0][ids], by_caption[1][ids]) for ids in by_caption[0])
    of_all = read(tmp_path / "set", model, "train")["video"]
    np.testing.assert_array_equal(
        of_all, np.stack(list(model.encoder.encode_frames(read(shards, model, "train")["video"])))
    )


def test_interrupted_caching_goes_on_and_writes_the_same_bytes(
    trained_run, shards, tokens, tmp_path, monkeypatch, caplog
):
    encode, calls = Encoder.encode_frames, []

    def interrupted(self, clips):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, clips)

    out = tmp_path / "set"
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode_frames", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache_tokens(trained_run, shards, out, split="train", videos_per_shard=3, progress=False)
    assert len(list((out / ".train.incomplete").glob("shard-*.json"))) == 2 and not (out / "train").exists()
    with caplog.at_level("INFO", "stgt_jax"):
        cache_tokens(trained_run, shards, out, split="train", videos_per_shard=3, progress=False)
    assert "an earlier build finished 2 of 6 shards; going on" in caplog.text
    files = sorted(path.name for path in (tokens / "train").iterdir())
    assert files == sorted(path.name for path in (out / "train").iterdir())
    assert all((out / "train" / name).read_bytes() == (tokens / "train" / name).read_bytes() for name in files)


def test_fingerprint_is_of_the_values_wherever_they_lie(model):
    vision = model.params["vision"]
    on_one = jax.tree.map(np.asarray, vision)
    of_one = fingerprint(on_one)
    assert fingerprint(vision) == of_one
    assert fingerprint(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), vision)) == of_one
    for change in (
        lambda leaf: leaf[..., ::-1],
        lambda leaf: leaf * 1.01,
        lambda leaf: np.where(np.arange(leaf.size).reshape(leaf.shape) == leaf.size // 2, leaf + 1, leaf),
    ):
        changed = dict(on_one, pos_embed=change(on_one["pos_embed"]))
        assert fingerprint(changed) != of_one
    renamed = {**on_one, "pos": on_one["pos_embed"]}
    del renamed["pos_embed"]
    assert fingerprint(renamed) != of_one


def test_tokens_of_another_vit_are_refused_by_name(model, shards, tokens):
    source, config = open_shards(tokens, "train"), model.config
    check_tokens(source, config, model.params)
    check_tokens(open_shards(shards, "train"), config, {})  # frames fit any model
    other = jax.tree.map(lambda leaf: leaf + 1, model.params)
    with pytest.raises(STGTError, match=r"holds tokens of another ViT: vision_fingerprint is .* of this model"):
        check_tokens(source, config, other)
    for changed, message in (
        (dataclasses.replace(config, dtype="bfloat16"), "dtype is float32 there, and bfloat16 of this"),
        (
            dataclasses.replace(config, vision=dataclasses.replace(config.vision, image_size=48)),
            "image_size is 16 there",
        ),
    ):
        with pytest.raises(STGTError, match=message):
            check_tokens(source, changed)
    with pytest.raises(STGTError, match=r"would train its own: give --vision\.freeze true"):
        check_tokens_for_training(source, config)
    frozen = dataclasses.replace(config, vision=dataclasses.replace(config.vision, freeze=True))
    check_tokens_for_training(source, frozen)
    with pytest.raises(DataError, match="holds tokens of frames of 16 pixels, and the model takes 48"):
        eval_batches(DataConfig(shards=str(tokens)), "train", 4, num_frames=2, image_size=48)


def test_mistakes_are_one_line(error_of, trained_run, shards, tokens, tmp_path):
    run, frames, done = str(trained_run), str(shards), str(tokens)
    cache = ["data", "cache-tokens", "--checkpoint", run, "--shards"]
    out = str(tmp_path / "x")
    assert "holds tokens already" in error_of(*cache, done, "--out", out)
    assert "exists already" in error_of(*cache, frames, "--out", done)
    assert "--num-frames=9 must be 1 to 4" in error_of(*cache, frames, "--out", out, "--num-frames", "9")
    assert "no shard set in" in error_of(*cache, str(tmp_path), "--out", out)
    assert "holds tokens of a vision encoder, not pictures" in error_of(
        "data", "show", done, "--out", str(tmp_path / "x.html")
    )
    assert not (tmp_path / "x").exists()
    pretrain = ["pretrain", "moving_shapes_stage1", "--workdir", out, "--data.shards"]
    assert "would train its own" in error_of(*pretrain, done, *SMALL)
    mixed = [*SMALL, "--data.mix_shards", done, "--vision.freeze", "true", "--weights.vision", run]
    assert "shard sets of frames and of tokens" in error_of(*pretrain, frames, *mixed)


@pytest.fixture(scope="module")
def scores(run_stgt, trained_run, shards, tokens, tmp_path_factory):
    """The losses of a training and the scores of an evaluation, from frames and from tokens."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for name, data in (("frames", shards), ("tokens", tokens)):
        train = ["pretrain", "moving_shapes_stage1", "--workdir", folder / name, "--data.shards", data, *SMALL,
                 "--vision.freeze", "true", "--weights.vision", trained_run]  # fmt: skip
        done = run_stgt(*train, "--json", folder / f"{name}.json")
        assert done.returncode == 0, done.stderr
        evaluate = ["eval", "retrieval", "--checkpoint", trained_run, "--shards", data, "--k-test", "2"]
        done = run_stgt(*evaluate, "--json", folder / f"{name}_scores.json")
        assert done.returncode == 0, done.stderr
        found[name] = [json.loads((folder / f"{name}{part}.json").read_text()) for part in ("", "_scores")]
    return found


def test_evaluation_gives_the_scores_of_the_frames(scores):
    (_, frames), (_, tokens) = scores["frames"], scores["tokens"]
    assert tokens["num_videos"] == frames["num_videos"] == 4
    assert tokens["similarity"] == frames["similarity"] and tokens["reranked"] == frames["reranked"]


def test_training_takes_tokens_and_refuses_those_of_another_vit(
    scores, run_stgt, shards, tokens, trained_run, tmp_path
):
    (frames, _), (of_tokens, _) = scores["frames"], scores["tokens"]
    assert of_tokens.keys() == frames.keys() and np.isfinite(of_tokens["loss"])
    other = shutil.copytree(trained_run, tmp_path / "other")
    exported = tmp_path / "exported"
    assert run_stgt("export", other, exported, "--shards", shards, "--made-by", "a test").returncode == 0
    import safetensors.numpy

    weights = safetensors.numpy.load_file(exported / "weights.safetensors")
    weights["vision/cls_token"] = weights["vision/cls_token"] + 1
    safetensors.numpy.save_file(weights, exported / "weights.safetensors")
    train = ["pretrain", "moving_shapes_stage1", "--workdir", tmp_path / "run", "--data.shards", tokens, *SMALL,
             "--vision.freeze", "true", "--weights.vision", exported]  # fmt: skip
    done = run_stgt(*train)
    assert done.returncode == 2 and "vision_fingerprint is" in done.stderr.splitlines()[-1]
    done = run_stgt("eval", "retrieval", "--checkpoint", exported, "--shards", tokens)
    assert done.returncode == 2 and "vision_fingerprint is" in done.stderr.splitlines()[-1]


def test_command_prints_what_it_made(trained_run, shards, tmp_path, capsys):
    words = ["data", "cache-tokens", "--checkpoint", str(trained_run), "--shards", str(shards), "--split", "test"]
    assert main([*words, "--out", str(tmp_path / "set"), "--json", str(tmp_path / "made.json")]) == 0
    made = json.loads((tmp_path / "made.json").read_text())
    assert made["num_videos"] == 4 and f"{made['bytes_per_clip'] / 1e6:.2f} MB a clip" in capsys.readouterr().out
