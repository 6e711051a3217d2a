"""A training from other projects' files: its folder says where each part came from, and what it may not be."""

import json

import pytest
from safetensors.numpy import load_file, save_file
from small_recipe import SMALL

VISION = "visual_encoder."


@pytest.fixture(scope="module")
def run(run_stgt, trained_run, shards, tmp_path_factory):
    """A training that started from files under the original's names; and what it logged."""
    folder = tmp_path_factory.mktemp("foreign")
    assert run_stgt("weights", "export", trained_run, folder / "names").returncode == 0
    weights = load_file(folder / "names" / "model.safetensors")
    parts = {
        "eva": {n.removeprefix(VISION): x for n, x in weights.items() if n.startswith(VISION)},
        "blip2": {n: x for n, x in weights.items() if not n.startswith((VISION, "graph_cross_model", "temp"))},
    }
    for name, tensors in parts.items():
        save_file(tensors, folder / f"{name}.safetensors")
    words = ["pretrain", "moving_shapes_stage1", "--workdir", folder / "run", "--data.shards", shards, *SMALL,
             "--weights.vision", folder / "eva.safetensors", "--weights.qformer", folder / "blip2.safetensors",
             "--vision.freeze", "true"]  # fmt: skip
    refused = run_stgt(*words)
    assert refused.returncode == 2 and "--init-missing 'temperature'" in refused.stderr.splitlines()[-1]
    done = run_stgt(*words, "--init-missing", "temperature")
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


def test_folder_keeps_the_table_that_was_logged(run, trained_run):
    folder, log = run
    origins = json.loads((folder / "run" / "weights.json").read_text())
    eva, blip2 = (str(folder / f"{name}.safetensors") for name in ("eva", "blip2"))
    assert origins["vision"] == eva and origins["qformer"] == origins["itm_head"] == blip2
    assert origins["graph"] == "random" and origins["weights_of_others"] == [eva, blip2]
    assert origins[f"report of {blip2}"]["random"] == ["temperature"]
    assert f"{eva} (EVA ViT): " in log and "random: temperature" in log
    content = json.loads((folder / "run" / "config.json").read_text())
    assert content["weights_origin"] == {"vision": eva, "qformer": blip2}


def test_its_models_are_not_passed_on_without_a_licence(run, run_stgt, shards):
    folder, _ = run
    assert run_stgt("export", folder / "run", folder / "model").returncode == 0
    words = ["pretrain", "moving_shapes_stage2", "--workdir", folder / "second", "--data.shards", shards, *SMALL]
    done = run_stgt(*words, "--weights.initial", folder / "run")
    assert done.returncode == 0, done.stderr
    for model in ("run", "model", "second"):
        done = run_stgt("weights", "push", folder / model, "me/model")
        assert done.returncode == 2 and "eva.safetensors" in done.stderr and "state the licence" in done.stderr


def test_results_say_what_a_conversion_noted(run, run_stgt, shards):
    folder, _ = run
    names = load_file(folder / "names" / "model.safetensors")
    save_file({n: x for n, x in names.items() if "pos_2D" not in n}, folder / "release.safetensors")
    words = ["weights", "convert", folder / "release.safetensors", "--out", folder / "converted", "--vocab",
             shards / "vocab.txt", "--vision-heads", "4", "--graph-heads", "4", "--qformer-heads", "4",
             "--sim-threshold", "0.8", "--max-text-length", "24", "--num-frames", "2"]  # fmt: skip
    done = run_stgt(*words)
    assert done.returncode == 0, done.stderr
    config = json.loads((folder / "converted" / "config.json").read_text())
    config["preparation"] |= {"frame_shape": "keep_aspect", "clean_text": "none"}  # as these shards are
    (folder / "converted" / "config.json").write_text(json.dumps(config))
    words = ["eval", "retrieval", "--checkpoint", folder / "converted", "--shards", shards, "--k-test", "2"]
    done = run_stgt(*words, "--results", folder / "results.json")
    assert done.returncode == 0, done.stderr
    notes = json.loads((folder / "results.json").read_text())["weights_notes"]
    assert any("published figures may not be met" in note for note in notes)
