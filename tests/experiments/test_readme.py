"""The documents' commands, run in their order in an empty folder: small models and clips, but the very same words."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from processes import ROOT, environment
from recipe_words import recipe_with
from small_recipe import SMALL, SMALL_ARM, SMALL_STEP

from data_pipeline.moving_shapes import make_moving_shapes
from experiments.commands.arguments import CommandParser
from experiments.commands.data_build import data_build

STGT = Path(sys.executable).with_name("stgt")
# What makes a command quick, by how it begins. The programs of the demo's text length serve the other videos too.
SMALLER = {
    "data build": ["--max-text-length=24"],
    **dict.fromkeys(("demo", "pretrain"), SMALL),
    "ablate": [
        *SMALL_ARM,
        "--eval_every=2",
        "--arms=csal",
        "--seeds=3",
        "--num-train=16",
        "--num-val=2",
        "--num-test=4",
    ],
    "bench step": SMALL_STEP,
    "bench graph-attention": ["--width=16", "--num-heads=2", "--patches=4", "--repeats=1"],
}
DOCUMENTS = ("README.md", "docs/results.md", "docs/training.md", "docs/data.md")


def blocks(language: str) -> list[str]:
    """Returns the code blocks of a language, in the documents' order."""
    text = "\n".join((ROOT / name).read_text() for name in DOCUMENTS)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]
SETUP = ["make install", "source .venv/bin/activate", "make demo"]
LAUNCHES = {  # the launch scripts, and the command in which each one's training runs
    "tpu_pod.sh": "gcloud compute tpus queued-resources ssh",
    "gke_xpk.sh": "xpk workload create",
    "slurm_gpu.sh": "srun",
    "dataflow_build.sh": ".venv/bin/stgt data build",
}


def make(target: str) -> str:
    """Returns what `make TARGET` would run."""
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def ran(run_stgt, tmp_path_factory):
    """The folder in which every `stgt` command of the documents ran, `make demo`'s first."""
    folder = tmp_path_factory.mktemp("readme [1]*?")  # a folder may have any name
    make_moving_shapes(folder / "made", num_train=16, num_test=4, image_size=32, num_frames=16, progress=False)
    (folder / "my_videos").mkdir()
    for split in ("train", "test"):
        text = (folder / "made" / split / "captions.csv").read_text()
        (folder / "my_videos" / f"{split}.csv").write_text(re.sub(r"^(\d+\.mp4)", rf"{split}/\1", text, flags=re.M))
        shutil.copytree(folder / "made" / split, folder / "my_videos" / split)
    demo = re.search(r"stgt (demo .*)", make("demo"))
    assert demo
    commands = [f"stgt {demo[1]} --num-train 16 --num-test 4"] + [line for line in COMMANDS if line.startswith("stgt")]
    for command in commands:
        words = shlex.split(command)[1:]
        small = next((options for begin, options in SMALLER.items() if command.startswith(f"stgt {begin}")), [])
        done = run_stgt(*words, *small, folder=folder)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    return folder


def test_every_command_is_known_to_this_test():
    others = [line for line in COMMANDS if not line.startswith("stgt ")]
    assert others[: len(SETUP)] == SETUP
    assert [Path(name).name for line in others for name in line.split() if name.endswith(".sh")] == list(LAUNCHES)
    offered = [line.removeprefix(".venv/bin/pip install --editable ") for line in others if "pip install" in line]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert offered == [f'".[{extra}]"' for extra in extras] and len(others) == len(SETUP) + len(LAUNCHES) + len(extras)


@pytest.mark.parametrize("script", LAUNCHES)
def test_launch_would_run_the_training_that_the_line_says(script):
    (line,) = (line for line in COMMANDS if script in line)
    words = shlex.split(line)
    place = next(i for i, word in enumerate(words) if word.endswith(script))
    first, *options = words[place + 1 :]
    settings = dict(word.split("=", 1) for word in words[:place] if word[0].isupper())
    command = [words[place], "--dry-run", first, *options]
    done = subprocess.run(command, cwd=ROOT, env=environment() | settings, capture_output=True, text=True, check=True)
    wanted = [first, *options] if script == "dataflow_build.sh" else ["pretrain", first, *options, "--resume"]
    assert any(shown.startswith(LAUNCHES[script]) and shlex.join(wanted) in shown for shown in done.stdout.splitlines())
    if script == "dataflow_build.sh":
        CommandParser(data_build, "stgt data build").read([first, *options])
    else:
        assert options[0] == "--workdir"
        recipe_with(first, options[2:])  # raises for one that no recipe has


def test_installed_script_is_the_command_of_the_documents():
    done = subprocess.run([STGT, "recipes"], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and "moving_shapes_stage1" in done.stdout, done.stderr


def test_make_test_is_what_ci_runs():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "-m pytest" in make("test")


def test_python_of_the_readme_ranks_and_describes_clips(ran):
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=ran, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    best, captions = map(ast.literal_eval, done.stdout.splitlines())
    assert best == ["clips/test/000000.mp4", "clips/test/000005.mp4"]  # of two clips that differ in the order of events
    assert str(best) in code and len(captions) == 2


def test_demo_leaves_figures_and_report(ran):
    figures = json.loads((ran / "runs/demo/demo.json").read_text())
    assert figures["clips"] == {"train": 16, "test": 4}
    assert figures["shards"]["test"]["num_written"] == 4
    assert {"stage1", "stage2"} <= figures["seconds"].keys()
    in_order = figures["retrieval"]["frames in order"]
    assert in_order["num_videos"] == 4 and 0 <= in_order["reranked"]["t2v_r1"] <= 100


def test_second_stage_says_where_its_weights_come_from(ran):
    origin = json.loads((ran / "runs/demo/stage2/config.json").read_text())["weights_origin"]
    assert origin == {"initial": str(ran / "runs/demo/stage1/checkpoints/2")}


def test_ablation_trains_both_stages_and_is_in_the_report(ran):
    folder = ran / "runs/demo/ablation"
    assert sorted(path.name for path in (folder / "results").iterdir()) == ["csal_3.json", "full_3.json"]
    for arm in ("full", "csal"):
        figures = json.loads((folder / "results" / f"{arm}_3.json").read_text())
        assert (figures["arm"], figures["seed"], figures["num_steps"]) == (arm, 3, 2)
        assert 0 <= figures["similarity"]["t2v_r1"] <= 100 and 0 <= figures["graph"]["edges_between"] <= 1
        assert figures["curve"]["step"] == [2] and len(figures["curve"]["twin_accuracy"]) == 1
    origin = json.loads((folder / "csal_3/run/config.json").read_text())["weights_origin"]
    assert origin == {"initial": str(folder / "full_3/run/checkpoints/2")}
    assert "full, then CSAL" in (ran / "runs/demo/report.html").read_text()


def test_finished_arms_are_not_trained_again(ran, run_stgt):
    results = ran / "runs/demo/ablation/results"
    before = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    done = run_stgt("ablate", "--workdir", "runs/demo/ablation", *SMALLER["ablate"], folder=ran)
    assert done.returncode == 0 and "full, then CSAL" in done.stdout, done.stderr
    assert {path: path.stat().st_mtime_ns for path in results.iterdir()} == before


def test_own_videos_are_trained_on_and_scored(ran):
    scores = json.loads((ran / "runs/mine/scores.json").read_text())
    assert scores["num_videos"] == scores["num_texts"] == 4
    assert (ran / "shards/mine/train/rejected.jsonl").read_text() == ""


def test_shards_are_a_tfds_data_set(ran):
    builder = tfds.builder_from_directory(ran / "shards/mine/train")
    assert len(builder.as_data_source(split="train")) == 16
