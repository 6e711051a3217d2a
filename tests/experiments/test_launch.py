"""The launch scripts: what they would run where none of the tools is there, and what with stand-ins of them."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, WorkerOptions

LAUNCH = Path(__file__).parents[2] / "experiments" / "launch"
SETTINGS = {
    "tpu_pod.sh": {
        "TPU_NAME": "slice",
        "ZONE": "zone-a",
        "TPU_TYPE": "v5litepod-256",
        "RUNTIME_VERSION": "v2-alpha-tpuv5-lite",
    },
    "gke_xpk.sh": {
        "WORKLOAD": "job",
        "CLUSTER": "cluster",
        "ZONE": "zone-a",
        "TPU_TYPE": "v5litepod-256",
        "IMAGE": "registry/stgt:1",
    },
    "slurm_gpu.sh": {},
    "dataflow_build.sh": {
        "PROJECT": "project",
        "REGION": "us-central1",
        "TEMP": "gs://bucket/temp",
        "IMAGE": "registry/build:1",
    },
}
WORDS = ["paper_stage1", "--workdir", "gs://bucket/a run", "--data.shards", "it's $HOME", "--mesh.fsdp=16", ""]
TRAIN = ["pretrain", *WORDS, "--resume"]
IN_JOB = {"SLURM_JOB_ID": "7", "SLURM_GPUS_PER_NODE": "h100:8", "SLURM_NTASKS_PER_NODE": "8"}


@pytest.fixture
def tools(tmp_path):
    """A folder to be the whole PATH: of the system it has only what the scripts themselves use."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("bash", "dirname", "env"):
        found = shutil.which(name)
        assert found, f"the scripts need {name}"
        (folder / name).symlink_to(found)
    return folder


def add_tool(tools: Path, name: str, then: str = "") -> None:
    """Puts a stand-in on the PATH: it notes the words it is called with, then runs some Python.

    Of all the stand-ins' calls so far, that Python has the text as `calls()`.
    """
    note = f"with open({str(tools / 'calls')!r}, 'a') as file: print(json.dumps([{name!r}, *sys.argv[1:]]), file=file)"
    calls = f"calls = lambda: open({str(tools / 'calls')!r}).read()"
    (tools / name).write_text(f"#!{sys.executable} -SE\nimport json, os, sys, time\n{note}\n{calls}\n{then}\n")
    (tools / name).chmod(0o755)


def calls(tools: Path) -> list[list[str]]:
    return [json.loads(line) for line in (tools / "calls").read_text().splitlines()]


def start(tools: Path, script: str, *words: str, **settings: str) -> subprocess.Popen[str]:
    environment = {"PATH": str(tools), **settings}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([LAUNCH / script, *words], env=environment, cwd=tools, text=True, **pipes)


def launch(tools: Path, script: str, *words: str, **settings: str) -> list[list[str]]:
    """Runs a script that must succeed; returns the lines it printed, split into words as a shell would."""
    process = start(tools, script, *words, **settings)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return [words for line in out.splitlines() if (words := shlex.split(line, comments=True))]


def error_line(tools: Path, script: str, *words: str, **settings: str) -> str:
    process = start(tools, script, *words, **settings)
    out, err = process.communicate()
    assert process.returncode == 2 and not out and len(err.splitlines()) == 1
    return err


def words_on_worker(ssh: list[str]) -> list[str]:
    """What the shell of a TPU worker, or of a container, makes of the command it is given."""
    command = next(word.removeprefix("--command=") for word in ssh if word.startswith("--command="))
    return shlex.split(command, comments=True)


@pytest.mark.parametrize("script", [path.name for path in LAUNCH.glob("*.sh")])
def test_script_is_valid_bash(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    assert script in SETTINGS or script == "common.sh"


@pytest.mark.parametrize("script", SETTINGS)
def test_every_missing_setting_is_asked_for_by_name(tools, script):
    for missing in SETTINGS[script]:
        given = {name: value for name, value in SETTINGS[script].items() if name != missing}
        assert f"{script}: error: set {missing}, " in error_line(tools, script, *WORDS, **given)


@pytest.mark.parametrize("script", SETTINGS)
@pytest.mark.parametrize("words", [[], ["--dry-run"], ["--workdir", "x"]])
def test_missing_recipe_is_one_line(tools, script, words):
    first = "name a source" if script == "dataflow_build.sh" else "name a recipe"
    assert first in error_line(tools, script, *words, **SETTINGS[script]).lower()


def test_tpu_pod_dry_run(tools):
    create, describe, archive, copy, install, train = launch(
        tools, "tpu_pod.sh", "--dry-run", *WORDS, **SETTINGS["tpu_pod.sh"]
    )
    assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "slice"]
    assert {"--zone=zone-a", "--node-id=slice", "--accelerator-type=v5litepod-256"} <= set(create)
    assert "describe" in describe and "archive" in archive
    for command in (copy, install, train):
        assert {"--node=all", "--worker=all", "--zone=zone-a"} <= set(command)
    assert ".[tpu,gcs]" in words_on_worker(install)
    command = words_on_worker(train)
    begin = command.index("pretrain")
    assert command[begin : begin + len(TRAIN)] == TRAIN and command[begin - 1] == ".venv/bin/stgt"


def test_tpu_pod_of_several_slices_with_further_options(tools):
    further = {"NUM_SLICES": "2", "CREATE_OPTIONS": "--spot --labels=a=b"}
    create, *_ = launch(tools, "tpu_pod.sh", "--dry-run", *WORDS, **SETTINGS["tpu_pod.sh"], **further)
    assert {"--node-count=2", "--node-prefix=slice", "--spot", "--labels=a=b"} <= set(create)


def test_tpu_pod_runs_what_its_dry_run_prints_and_waits_until_the_slice_is_there(tools):
    shown = launch(tools, "tpu_pod.sh", "--dry-run", *WORDS, **SETTINGS["tpu_pod.sh"])
    add_tool(tools, "git")
    add_tool(tools, "sleep")
    add_tool(
        tools,
        "gcloud",
        "if 'describe' in sys.argv:\n"
        "    print('ACTIVE' if 'sleep' in calls() else 'WAITING_FOR_RESOURCES')\n"
        "    sys.exit('create' not in calls())",
    )
    launch(tools, "tpu_pod.sh", *WORDS, **SETTINGS["tpu_pod.sh"])
    ran = [words for words in calls(tools) if "describe" not in words and words[0] != "sleep"]
    assert ran == [words for words in shown if "describe" not in words]


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_tpu_pod_says_how_to_delete_a_slice_that_will_never_be_there(tools, state):
    add_tool(tools, "gcloud", f"print({state!r})")
    line = error_line(tools, "tpu_pod.sh", *WORDS, **SETTINGS["tpu_pod.sh"])
    assert f"slice is {state}; start again after: gcloud compute tpus queued-resources delete slice" in line
    assert "create" not in str(calls(tools))


def test_gke_dry_run(tools):
    (create,) = launch(tools, "gke_xpk.sh", "--dry-run", *WORDS, NUM_SLICES="4", **SETTINGS["gke_xpk.sh"])
    assert create[:4] == ["xpk", "workload", "create", "--workload=job"]
    assert {"--cluster=cluster", "--tpu-type=v5litepod-256", "--num-slices=4"} <= set(create)
    assert "--docker-image=registry/stgt:1" in create
    assert words_on_worker(create) == ["exec", "stgt", *TRAIN]
    add_tool(tools, "xpk")
    launch(tools, "gke_xpk.sh", *WORDS, NUM_SLICES="4", **SETTINGS["gke_xpk.sh"])
    assert calls(tools) == [create]


@pytest.mark.parametrize(("file", "extras"), [("Dockerfile", "[tpu,gcs]"), ("dataflow.Dockerfile", "[beam,gcs]")])
def test_image_holds_every_package_that_is_installed(file, extras):
    dockerfile = (LAUNCH / file).read_text()
    copied = {line.split()[-1] for line in dockerfile.splitlines() if line.startswith("COPY")}
    assert {"stgt_jax", "data_pipeline", "experiments"} <= copied and f'".{extras}"' in dockerfile


def test_image_of_dataflow_has_the_beam_that_is_locked():
    (image,) = re.findall(
        r"^FROM apache/beam_python3\.12_sdk:(\S+)", (LAUNCH / "dataflow.Dockerfile").read_text(), re.M
    )
    assert f"apache-beam=={image}\n" in (LAUNCH.parents[1] / "requirements" / "lock-3.12.txt").read_text()


def test_dataflow_dry_run(tools):
    words = ["webvid", "--annotations", "it's here", "--videos", "gs://bucket/videos", "--out", "gs://bucket/shards"]
    settings = SETTINGS["dataflow_build.sh"] | {"BEAM_OPTIONS": "--worker_machine_type=n2-highcpu-8"}
    (build,) = launch(tools, "dataflow_build.sh", "--dry-run", *words, **settings)
    assert build[:-1] == [".venv/bin/stgt", "data", "build", *words, "--beam-runner", "DataflowRunner"]
    options = build[-1].removeprefix("--beam-options=").split()
    read = PipelineOptions(options)
    cloud, workers = read.view_as(GoogleCloudOptions), read.view_as(WorkerOptions)
    assert (cloud.project, cloud.region, cloud.temp_location) == ("project", "us-central1", "gs://bucket/temp")
    assert (workers.max_num_workers, workers.machine_type) == (100, "n2-highcpu-8")
    assert workers.sdk_container_image == "registry/build:1"
    add_tool(tools, "stgt")
    launch(tools, "dataflow_build.sh", *words, STGT="stgt", **settings)
    assert calls(tools) == [["stgt", *build[1:]]]


def test_slurm_dry_run(tools):
    (train,) = launch(tools, "slurm_gpu.sh", "--dry-run", *WORDS)
    assert train[0] == "srun" and train[-len(TRAIN) - 1 :] == [".venv/bin/stgt", *TRAIN]
    add_tool(tools, "srun")
    launch(tools, "slurm_gpu.sh", *WORDS, **IN_JOB)
    assert calls(tools) == [train]


def test_slurm_outside_a_job_or_with_other_than_a_process_a_gpu_is_refused(tools):
    assert "start it with sbatch" in error_line(tools, "slurm_gpu.sh", *WORDS)
    settings = IN_JOB | {"SLURM_NTASKS_PER_NODE": "4"}
    line = error_line(tools, "slurm_gpu.sh", *WORDS, **settings)
    assert "--ntasks-per-node=4 must equal --gpus-per-node=h100:8" in line


def test_slurm_job_that_failed_is_not_queued_again(tools):
    add_tool(tools, "srun", "sys.exit(3)")
    process = start(tools, "slurm_gpu.sh", *WORDS, **IN_JOB)
    process.communicate()
    assert process.returncode == 3 and [name for name, *_ in calls(tools)] == ["srun"]


def test_slurm_job_that_is_cut_off_saves_and_is_queued_again(tools):
    saved = tools / "saved"
    add_tool(
        tools,
        "srun",
        f"while 'scancel' not in calls(): time.sleep(0.02)\ntime.sleep(0.2); open({str(saved)!r}, 'w')",
    )
    add_tool(tools, "scancel")
    add_tool(tools, "scontrol", f"assert os.path.exists({str(saved)!r})")
    process = start(tools, "slurm_gpu.sh", *WORDS, **IN_JOB)
    while not (tools / "calls").exists():
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=20)
    assert calls(tools)[1:] == [["scancel", "--signal=TERM", "7"], ["scontrol", "requeue", "7"]]
