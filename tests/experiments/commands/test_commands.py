"""The `stgt` command: mistakes end as one line that names them, and the commands work one after another."""

import csv
import json
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
from typing import Any

import pytest
from processes import ROOT, environment
from small_recipe import SMALL

import stgt_jax as stgt
from data_pipeline.build import build_shards
from data_pipeline.datasets.select import DATASETS
from data_pipeline.tokenizer import SPECIAL_TOKENS
from experiments.commands.arguments import CommandParser
from experiments.commands.data_build import data_build
from experiments.commands.main import main
from experiments.recipe_fields import describe_fields
from experiments.recipes import RECIPES, Recipe

PRETRAIN = ("pretrain", "moving_shapes_stage1", "--workdir", "unused")


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["pretrain", "moving_shape_stage1", "--workdir", "x"], "unknown recipe 'moving_shape_stage1'; did you mean"),
        (["recipes", "paper_stage3"], "unknown recipe 'paper_stage3'; did you mean 'paper_stage"),
        ([*PRETRAIN, "--learning_speed", "3"], "unknown option --learning_speed"),
        ([*PRETRAIN, "--train.num_step", "3"], "unknown option --train.num_step; did you mean '--train.num_steps'?"),
        ([*PRETRAIN, "--dropout", "0"], "--dropout could be --model.graph.dropout or --model.qformer.dropout"),
        ([*PRETRAIN, "--learning_rate=1"], "unknown option --learning_rate; did you mean --train.opt"),
        ([*PRETRAIN, "--resme"], "unknown option --resme; did you mean '--resume'?"),
        ([*PRETRAIN, "--workdri", "x"], "unknown option --workdri; did you mean '--workdir'?"),
        ([*PRETRAIN, "--vision.num_heads", "5"], "vision.num_heads=5 does not divide vision width 96; use 4, for"),
        ([*PRETRAIN, "--qformer.num_heads", "7"], "qformer.num_heads=7 does not divide qformer width 96; use"),
        ([*PRETRAIN, "--num_frames", "0"], "model.num_frames=0 must be greater than 0"),
        ([*PRETRAIN, "--time_embed_rows", "0"], "graph.time_embed_rows=0 must be greater than 0"),
        ([*PRETRAIN, "--variant", "unweigthed"], "expected full|unweighted|none but got 'unweigthed'; did you"),
        ([*PRETRAIN, "--train_frame_sampling=head"], "expected headtail|uniform but got 'head'; did you mean"),
        ([*PRETRAIN, "--vision.image_size=60"], "vision.image_size=60 is not a multiple of vision.patch_size=16"),
        (PRETRAIN, "data.shards is not set; make a shard set with `stgt data build` and give --data.shards DIR"),
        ([*PRETRAIN, "--data.shards", "no/such"], "no shard set in 'no/such': build one with `stgt data build`"),
        ([*PRETRAIN, "--profile-steps", "10"], "--profile-steps=10 is not FIRST:LAST with 1 <= FIRST <= LAST"),
        ([*PRETRAIN, "--profile-steps", "15:10"], "--profile-steps=15:10 is not"),
        ([*PRETRAIN, "--profile-steps", "0:3"], "--profile-steps=0:3 is not"),
        ([*PRETRAIN, "--profile-steps=a:b"], "--profile-steps=a:b is not"),
        ([*PRETRAIN, "--profile_steps=2:1"], "--profile-steps=2:1 is not"),
        (["pretrain", "paper_stage2", "--workdir", "x"], "starts from the weights of an earlier stage: give its"),
        (["pretrain", "paper_stage1", "--workdir", "x"], "give a run or checkpoint with a trained one,"),
        ([*PRETRAIN, "--vision.freeze=true"], "vision.freeze=true would keep an encoder of random weights: give a"),
        (["pretrain", "paper_stage1"], "the following arguments are required: --workdir; see `stgt pretrain --help`"),
        (["pretrian"], "unknown command 'pretrian'; did you mean 'pretrain'?"),
        (["bnech", "step"], "unknown command 'bnech'; did you mean 'bench'?"),
        (["x"], "unknown command 'x'; known: "),
        (["data", "mkae"], "unknown command 'data mkae'; did you mean 'data make'?"),
        (["data"], "name a command: data make, data build, data cache-tokens, data verify, data show; see"),
        (["data", "verify", "no/such"], "no shard set in 'no/such': build one with `stgt data build`"),
        (["data", "show", "no/such", "--out", "x.html"], "no shard set in 'no/such'"),
        ([*PRETRAIN, "--mix_weights", "1,2"], "data.mix_weights=(1.0, 2.0) must be a positive number for each"),
        (["bench", "data", "--captions", "none.csv"], "no caption file 'none.csv'"),
        (["bench", "data", "--memory-records", "10"], "--memory-records=10 must be 0, or at least 1000"),
        (["bench", "data", "--repeats", "0"], "--repeats=0 must be greater than 0"),
        ([], "name a command: demo, data make, "),
        (["recipes", "--json=x"], "unknown option --json"),
        (["data", "make", "--out", "x", "--num-trian=3"], "unknown option --num-trian; did you mean '--num-train'?"),
        (["data", "make", "--out", "x", "--num-train", "ten"], "argument --num-train: expected int but got 'ten'"),
        (["data", "build", "no/such.csv", "--out", "x"], "no caption file 'no/such.csv'"),
        (["data", "build", "msrvt", "--out", "x"], "the name of a data set; did you mean 'msrvtt'?"),
        (["data", "build", "msvd", "--out", "x"], "msvd needs --annotations, the folder of its annotation files"),
        (["data", "build", "a.csv", "--out", "x", "--variant", "y"], "--variant is for a data set by name; 'a.csv' is"),
        (["eval", "retrieval", "--checkpoint", "no/such", "--shards", "x"], "no/such"),
        (["report", "--workdir", "no/such"], "'no/such' is no finished demo"),
    ],
)  # fmt: skip
def test_mistake_is_one_line_that_names_it(error_of, argv, complaint):
    assert complaint in error_of(*argv)


def test_mistake_found_before_training_leaves_no_folder(error_of, tmp_path):
    error_of("pretrain", "moving_shapes_stage1", "--workdir", tmp_path / "run")
    error_of("demo", "--workdir", tmp_path / "run", "--data.shards", "x")
    assert not (tmp_path / "run").exists()


def test_shards_of_another_vocabulary_are_refused_by_a_paper_recipe(error_of, shards, tmp_path):
    weights = ("--weights.vision", tmp_path)
    line = error_of("pretrain", "paper_stage1", "--workdir", tmp_path / "run", "--data.shards", shards, *weights)
    assert "model.qformer.vocab_size=30523, but the vocabulary of" in line and "--vocab_from_data true" in line


def test_captions_longer_than_the_model_reads_are_refused(error_of, shards, tmp_path):
    line = error_of(*PRETRAIN, "--data.shards", shards, "--max_text_length", "16")
    assert "model.qformer.max_text_length=16 is less than the 24 tokens of a caption" in line


def test_more_frames_than_the_shards_keep_are_refused(error_of, shards, tmp_path):
    assert "more than the 4 frames" in error_of(
        "pretrain", "moving_shapes_stage1", "--workdir", tmp_path, "--data.shards", shards, "--batch_size", "8"
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["data", "make", "--out"],
        ["data", "build", "captions.csv", "--out"],
        [*PRETRAIN[:2], "--workdir"],
        ["demo", "--workdir"],
        ["ablate", "--workdir"],
        ["report", "--workdir"],
    ],
)
def test_folder_to_write_that_is_a_file_is_refused(error_of, tmp_path, argv):
    (tmp_path / "file").touch()
    for place in ("file", "file/run"):
        assert f"'{tmp_path}/file' is not a folder that can be written to" in error_of(*argv, tmp_path / place)


def test_json_that_cannot_be_written_is_refused_before_the_work(error_of, tmp_path):
    line = error_of("data", "make", "--out", tmp_path / "clips", "--json", tmp_path)
    assert f"argument --json: '{tmp_path}' is a folder; name a file" in line and not (tmp_path / "clips").exists()


def python(code: str, *argv: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a process of its own, with `main` and `COMMANDS` at hand."""
    code = f"import sys\nfrom experiments.commands.main import COMMANDS, main\n{code}"
    settings = {"capture_output": True, "text": True} | settings
    return subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, env=environment(), check=False, **settings)


def test_help_needs_no_slow_import():
    code = """
import time
assert main(["--help"]) == 0 and time.process_time() < 0.5
for name in ("data", *COMMANDS):
    assert main([*name.split(), "--help"]) == 0
assert main(["help"]) == main(["--version"]) == 0
assert main(["recipes"]) == main(["recipes", "paper_stage1"]) == 0
slow = {"jax", "grain", "tensorflow_datasets"} & set(sys.modules)
assert not slow, slow
"""
    done = python(code)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "usage: stgt data COMMAND" in done.stdout and "\nstgt_jax 0." in done.stdout


@pytest.mark.parametrize("argv", [["--help"], ["recipes", "paper_stage1"]])
def test_output_that_nobody_reads_any_more_ends_quietly(argv):
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = python("sys.exit(main())", *argv, capture_output=False, stdout=write_end, stderr=subprocess.PIPE)
    os.close(write_end)
    assert done.returncode == 128 + signal.SIGPIPE and not done.stderr


def test_command_without_an_output_runs():
    done = python("sys.stdout = None; sys.exit(main(['recipes']))")  # what Python makes of `stgt recipes >&-`
    assert done.returncode == 0 and not done.stderr


def test_log_line_appears_once_though_the_root_logger_has_a_handler():
    code = """
import logging
from experiments.commands import recipes
recipes.align = lambda rows: logging.getLogger("stgt_jax.models").info("a line of the log")
logging.basicConfig()  # as an import of Orbax does
sys.exit(main(["recipes"]))
"""
    done = python(code)
    assert done.returncode == 0 and done.stderr == "a line of the log\n"


def test_user_without_a_home_folder_has_no_compilation_cache(monkeypatch, capsys):
    def unknown(user_id):
        raise KeyError(user_id)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert main(["recipes"]) == 0 and "paper_stage1" in capsys.readouterr().out
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_recipes_are_listed_and_their_fields_with_value_type_and_meaning(capsys):
    assert main(["recipes"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(RECIPES)
    assert main(["recipes", "paper_stage2"]) == 0
    lines = [re.split("  +", line) for line in capsys.readouterr().out.splitlines()]
    assert [line[0].split()[0] for line in lines] == [f"--{name}" for name in describe_fields(Recipe)]
    assert ["--train.loss.contrastive csal", "vtc|csal", 'stage 1 uses "vtc", stage 2 "csal"'] in lines


def test_data_commands_make_shards_and_report_their_counts(tmp_path, capsys):
    clips, shards = tmp_path / "clips", tmp_path / "shards"
    made = ["data", "make", "--out", str(clips), "--num-train", "4", "--num-test", "2", "--json", str(tmp_path / "m")]
    assert main(made) == 0
    assert json.loads((tmp_path / "m").read_text()) == {"train": 4, "test": 2}
    (clips / "train" / "000001.mp4").write_bytes(b"")
    captions = clips / "train" / "captions.csv"
    build = ["data", "build", str(captions), "--out", str(shards), "--resize", "32", "--json", str(tmp_path / "b")]
    assert main(build) == 0
    with captions.open() as file:
        num_rows = len(list(csv.DictReader(file)))
    counts = json.loads((tmp_path / "b").read_text())
    assert (counts["num_rows"], counts["num_written"], counts["num_rejected"]) == (num_rows, num_rows - 1, 1)
    assert "rejected" in capsys.readouterr().out
    assert main(build) == 2
    assert main([*build, "--overwrite"]) == 0


def test_data_set_is_built_by_its_name_and_its_size_is_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "make", "--out", "clips", "--num-train", "3", "--num-test", "1"]) == 0
    videos = sorted((tmp_path / "clips" / "train").glob("*.mp4"))
    for number, path in enumerate(videos):
        path.rename(tmp_path / "clips" / f"video{number}.mp4")
    (tmp_path / "msrvtt").mkdir()
    rows = "".join(f"ret{number},msr{number},video{number},a ball moves\n" for number in range(4))
    (tmp_path / "msrvtt" / "MSRVTT_JSFUSION_test.csv").write_text(f"key,vid_key,video_id,sentence\n{rows}")
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, "a", "ball", "moves"]))
    words = ["data", "build", "msrvtt", "--annotations", "msrvtt", "--videos", "clips", "--split", "test"]
    words += ["--vocab", "vocab.txt", "--resize", "32"]
    capsys.readouterr()
    assert main([*words, "--out", "shards", "--json", "figures.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "msrvtt 1k-A, split test: 4 videos, 4 captions (not as published)"
    assert lines[1] == "warning: msrvtt 1k-A, split test has 4 videos, and 1,000 are published"
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["num_rows"], figures["num_written"], figures["rejected_by_reason"]) == (4, 3, {"missing": 1})


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "data").glob("*.md")), ids=lambda page: page.stem)
def test_commands_on_the_page_of_a_data_set_are_right(page):
    commands = [shlex.split(line) for line in page.read_text().splitlines() if line.startswith("stgt ")]
    assert commands and all(words[:4] == ["stgt", "data", "build", page.stem] for words in commands)
    for words in commands:
        options, _ = CommandParser(data_build, "stgt data build").read(words[3:])
        splits = DATASETS[page.stem].splits
        variant = options.get("variant", next(iter(splits)))
        assert not splits[variant] or options["split"] in splits[variant]
    for variant in filter(None, splits):
        assert f"`{variant}`" in page.read_text()


def test_exported_model_scores_what_its_run_scores(trained_run, shards, tmp_path, run_stgt):
    exported, files = tmp_path / "exported", [tmp_path / "run.json", tmp_path / "exported.json"]
    export = ["export", str(trained_run), str(exported), "--shards", str(shards), "--made-by", "a test"]
    assert run_stgt(*export).returncode == 0
    for checkpoint, file in zip((trained_run, exported), files, strict=True):
        words = ["--checkpoint", str(checkpoint), "--shards", str(shards), "--json", str(file)]
        assert run_stgt("eval", "retrieval", *words).returncode == 0
    scores, same = (json.loads(file.read_text()) for file in files)
    assert same == scores

    origin = json.loads((exported / "origin.json").read_text())
    assert re.fullmatch("([0-9a-f]{40}(-dirty)?)?", origin.pop("commit"))  # none outside a checkout
    assert origin == {"command": "a test", "checkpoint": "2", "split": "test", "figures": scores}
    assert repr(stgt.load(exported)).startswith(f"Model('{exported}', 2 frames of 16x16 pixels")


def test_pretrain_then_eval(trained_run, shards, tmp_path, error_of, run_stgt):
    scores = tmp_path / "scores.json"
    figures = json.loads((trained_run.parent / "losses.json").read_text())
    assert {"loss", "loss_contrastive", "loss_vtm", "loss_vtg", "validation/t2v_r1"} <= set(figures)

    evaluate = ["eval", "retrieval", "--checkpoint", str(trained_run), "--shards", str(shards), "--k-test", "2"]
    assert run_stgt(*evaluate, "--json", scores).returncode == 0
    written = json.loads(scores.read_text())
    assert written["num_videos"] == 4
    assert written["frames"] == {
        "frame_shape": "keep_aspect", "encoding": "jpeg", "jpeg_quality": 90, "chosen": "floor(i n / T)",
        "num_frames": 2, "num_kept_frames": 4,
    }  # fmt: skip
    assert "frames shuffled" in run_stgt(*evaluate, "--shuffle-frames").stdout

    train = ["pretrain", "moving_shapes_stage1", "--data.shards", str(shards), *SMALL]
    again = [*train, "--workdir", str(trained_run)]
    assert "--profile-steps 2:3 is not within this run's steps, 1:2" in error_of(*again, "--profile-steps", "2:3")
    assert "--resume" in error_of(*again)
    assert run_stgt(*again, "--resume").returncode == 0
    other = [*train, "--workdir", str(tmp_path / "other"), "--weights.initial", trained_run, "--embed_dim", "4"]
    assert "are of another model: model.embed_dim was 8, now 4" in error_of(*other)


def test_verify_lists_what_is_wrong_and_ends_with_status_2(shards, tmp_path, capsys):
    damaged = shutil.copytree(shards, tmp_path / "set")
    file = next((damaged / "test").glob("*.array_record*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert main(["data", "verify", str(damaged), "--num-workers", "0"]) == 2
    out, err = capsys.readouterr()
    assert "train: 16 videos, 16 captions, 0 questions, 0 problems" in out and file.name in out
    assert re.search(r"stgt: error: '.*set' has \d+ problems, listed above", err)


def test_shards_of_another_vocabulary_are_not_mixed(shards, tmp_path, error_of):
    clips = shards.parent / "clips" / "test" / "captions.csv"
    options = {"num_kept_frames": 4, "resize": 32, "max_text_length": 24, "num_workers": 0, "progress": False}
    build_shards(clips, tmp_path / "set", split="train", **options)
    train = ["pretrain", "moving_shapes_stage1", "--workdir", tmp_path / "run", "--data.shards", shards]
    line = error_of(*train, "--data.mix_shards", tmp_path / "set")
    assert line.startswith("data.mix_shards: ") and f"--vocab {shards}/vocab.txt" in line
