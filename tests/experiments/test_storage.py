"""Runs on gs://: the real libraries talk to a Google Cloud Storage that is a server of this test."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_process import CommandProcess
from fake_gcs import FakeGcs, fake_gcs
from other_gcs import other_gcs
from processes import ROOT, environment
from small_recipe import SMALL

RUN, SHARDS = "gs://bucket/run", "gs://bucket/shards"
TRAIN = ["pretrain", "moving_shapes_stage1", "--workdir", RUN, "--data.shards", SHARDS, *SMALL]


@pytest.fixture(scope="module", params=[fake_gcs, other_gcs])
def store(request, shards):
    """A server whose bucket has the shard set."""
    pytest.importorskip("gcsfs")
    with request.param() as server:
        put_shards(server, shards)
        yield server


def put_shards(server, shards):
    for file in filter(Path.is_file, shards.rglob("*")):
        server.put(f"bucket/shards/{file.relative_to(shards)}", file.read_bytes())


@pytest.fixture(scope="module")
def run_stgt(store):
    """Runs commands in a process of their own, whose libraries find the server: they read its address once."""
    with CommandProcess(store.environment) as process:
        yield process.run


def metrics(store: FakeGcs) -> list[int]:
    lines = store.get("bucket/run/metrics.jsonl").decode().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_training_in_a_bucket_goes_on_and_is_evaluated(store, run_stgt):
    done = run_stgt(*TRAIN, "--resume")
    assert done.returncode == 0, done.stderr
    assert metrics(store) == [1, 2, 2]  # the last is the validation's
    names = store.names("bucket/run/")
    assert {"config.json", "checkpoints/2/commit_success.txt"} <= {name.removeprefix("bucket/run/") for name in names}
    assert any(name.startswith("bucket/run/tensorboard/events") for name in names)
    assert "bucket/run/run.lock" not in names

    done = run_stgt(*TRAIN, "--resume", "--allow-changes", "--num_steps=3", "--json", "gs://bucket/losses.json")
    assert done.returncode == 0, done.stderr
    assert metrics(store) == [1, 2, 2, 3, 3]
    assert "loss_vtm" in json.loads(store.get("bucket/losses.json"))

    done = run_stgt("eval", "retrieval", "--checkpoint", RUN, "--shards", SHARDS, "--k-test", "2")
    assert done.returncode == 0 and "text to video" in done.stdout, done.stderr


def test_shard_set_is_built_in_a_bucket_from_videos_in_a_bucket(store, run_stgt, tmp_path, shards):
    clips = shards.parent / "clips"
    captions = (clips / "train" / "captions.csv").read_text()
    for file in (clips / "train").glob("*.mp4"):
        store.put(f"bucket/videos/{file.name}", file.read_bytes())
    (tmp_path / "captions.csv").write_text(captions + "missing.mp4,a red circle moves\n")
    out = "gs://bucket/built"
    build = ["data", "build", "folder", "--annotations", tmp_path / "captions.csv", "--videos", "gs://bucket/videos",
             "--out", out, "--resize", "32", "--videos-per-shard", "3", "--json", tmp_path / "built.json"]  # fmt: skip
    done = run_stgt(*build, "--beam-runner", "DirectRunner")
    assert done.returncode == 0, done.stderr
    built = json.loads((tmp_path / "built.json").read_text())
    assert built["rejected_by_reason"] == {"missing": 1} and built["num_rejected"] == 1
    names = [name.removeprefix("bucket/built/") for name in store.names("bucket/built/")]
    assert {"vocab.txt", "train/manifest.json", "train/rejected.jsonl"} <= set(names)
    assert not [name for name in names if name.startswith(".")], "nothing is left of the build"
    verified = run_stgt("data", "verify", out)
    assert verified.returncode == 0 and f"{built['num_videos']} videos" in verified.stdout, verified.stderr

    store.put("bucket/videos/missing.mp4", next((clips / "train").glob("*.mp4")).read_bytes())
    assert "exists already" in run_stgt(*build).stderr
    done = run_stgt(*build, "--retry-rejected")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "built.json").read_text())["num_rejected"] == 0
    assert run_stgt("data", "verify", out).returncode == 0


HOLD = """
import sys, time
from stgt_jax.train import run_lock
run_lock.BEAT_SECONDS = 1
try:
    with run_lock.locked("gs://bucket/held"):
        print("held", flush=True)
        time.sleep(float(sys.argv[1]))
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_run_in_a_bucket_holds_its_folder_until_it_ends_or_dies(store):
    def hold(seconds: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(seconds)]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment() | store.environment, stdout=subprocess.PIPE, text=True
        )

    first = hold(600)
    assert first.stdout.readline() == "held\n"
    second = hold(0)
    assert f"a run is in progress there (process {first.pid} on " in second.communicate()[0]
    first.kill()
    first.wait()
    first.stdout.close()
    third = hold(0)
    assert third.communicate()[0] == "held\n"
    assert "bucket/held/run.lock" not in store.names("bucket/held/")


IMPATIENT = """
import sys
from experiments.commands.main import main
from stgt_jax import storage
storage.STORAGE_LIMIT, storage.REACH_LIMIT = 4, 2
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_bucket_that_never_answers_again_ends_the_run_with_one_line(shards):
    with fake_gcs() as store:
        put_shards(store, shards)
        command = [sys.executable, "-c", IMPATIENT, *TRAIN, "--num_steps=100000", "--checkpoint_every=20"]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment() | store.environment, stderr=subprocess.PIPE, text=True
        )
        for _ in range(1200):
            if "bucket/run/checkpoints/20/commit_success.txt" in store.objects:
                break
            time.sleep(0.1)
        store.silent = True
        said = process.communicate(timeout=60)[1]
        line = said.splitlines()[-1]
        assert process.returncode == 2 and "Traceback" not in said, said[-3000:]
        assert line.startswith(f"stgt: error: {RUN}") and "storage has not answered for 4 s" in line

        done = subprocess.run(
            [*command, "--resume"], cwd=ROOT, env=environment() | store.environment, stderr=subprocess.PIPE, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert "storage has not answered for 2 s" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("place", ["gs://bucket/nothing", "gs://bucket/incomplete"])
def test_shards_that_are_not_whole_in_the_bucket_are_one_line(store, run_stgt, place):
    for name in store.names("bucket/shards/"):
        if "array_record" not in name:
            store.put(name.replace("shards", "incomplete", 1), store.get(name))
    done = run_stgt(*TRAIN, "--data.shards", place)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and line.startswith("stgt: error: ") and place in line


@pytest.mark.parametrize("place", ["s3://bucket/x", "hdfs://host/x"])
@pytest.mark.parametrize("option", ["--workdir", "--data.shards", "--weights.initial", "--weights.vision"])
def test_store_that_cannot_be_used_is_refused_by_name(error_of, shards, tmp_path, option, place):
    folders = {"--workdir": tmp_path, "--data.shards": shards} | {option: place}
    words = [str(word) for pair in folders.items() for word in pair]
    assert f"'{place}': only gs:// is supported" in error_of("pretrain", "moving_shapes_stage1", *words)


def test_missing_extra_is_named(error_of, monkeypatch, shards):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    line = error_of("pretrain", "moving_shapes_stage1", "--workdir", RUN, "--data.shards", shards)
    assert line == f"'{RUN}' needs an extra: pip install --editable \".[gcs]\""


@pytest.mark.parametrize(
    "argv",
    [
        ["data", "make", "--out", RUN],
        ["data", "build", "gs://bucket/captions.csv", "--out", "x"],
        ["demo", "--workdir", RUN],
        ["report", "--workdir", RUN],
        ["ablate", "--workdir", RUN],
    ],
)
def test_command_that_needs_a_local_folder_says_so_and_makes_none(error_of, monkeypatch, tmp_path, argv):
    monkeypatch.chdir(tmp_path)
    assert "is in a bucket" in error_of(*argv) and not list(tmp_path.iterdir())
