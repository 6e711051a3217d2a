"""How processes become one run, and how each ends when another one does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from member import HEARTBEAT, PATIENCE
from processes import environment, free_port

from stgt_jax.distributed import joined
from stgt_jax.errors import STGTError

ENDED_WITHIN = HEARTBEAT + 10  # seconds
LOST = "stgt: error: another process of this run has ended or cannot be reached; start all of them again with --resume"
SLURM_STEP = {
    "SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "n[1-2]",
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch):
    """The arguments of every call of `jax.distributed.initialize`, which does nothing; no launcher in sight."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *place, **options: calls.append((place, options)))
    monkeypatch.setattr("stgt_jax.distributed._print_on_abort", lambda message: None)
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "MEGASCALE_")):
            monkeypatch.delenv(name)
    return calls


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        (("10.0.0.1:1234", None, None), "--num-processes and --process-id missing; give --coordinator HOST:PORT"),
        (("", 2, 0), "--coordinator missing; give"),
        (("10.0.0.1:1234", 2, None), "--process-id missing; give"),
        (("10.0.0.1", 2, 0), "--coordinator 10.0.0.1 is not HOST:PORT"),
        (("10.0.0.1:http", 2, 0), "--coordinator 10.0.0.1:http is not HOST:PORT"),
        (("10.0.0.1:70000", 2, 0), "--coordinator 10.0.0.1:70000 is not HOST:PORT"),
        (("10.0.0.1:1234", 0, 0), "--num-processes 0 must be at least 1"),
        (("10.0.0.1:1234", 2, 2), "--process-id 2 must lie in 0..1"),
        (("10.0.0.1:1234", 2, -1), "--process-id -1 must lie in 0..1"),
    ],
)
def test_incomplete_or_impossible_place_is_refused_by_name(asked, place, complaint):
    with pytest.raises(STGTError) as error, joined(*place, heartbeat_timeout=HEARTBEAT):
        pass
    assert complaint in str(error.value) and "\n" not in str(error.value)
    assert not asked


def test_heartbeat_of_no_time_is_refused(asked):
    with pytest.raises(STGTError, match="--heartbeat-timeout 0 must be at least 1 second"), joined(heartbeat_timeout=0):
        pass


@pytest.mark.parametrize(
    "variables",
    [
        SLURM_STEP,
        {"OMPI_COMM_WORLD_SIZE": "4"},
        {"TPU_WORKER_HOSTNAMES": "t1k-0,t1k-1", "TPU_WORKER_ID": "0"},
        {"TPU_WORKER_HOSTNAMES": "t1k-0", "MEGASCALE_COORDINATOR_ADDRESS": "t1k-0"},
    ],
)
def test_environment_of_several_processes_leaves_the_rest_to_jax(asked, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with joined(heartbeat_timeout=7):
        pass
    ((place, options),) = asked
    assert place == (None, None, None)
    assert options["cluster_detection_method"] is None and options["heartbeat_timeout_seconds"] == 7


@pytest.mark.parametrize(
    "variables",
    [
        {},
        SLURM_STEP | {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # a batch script outside any step
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"TPU_PROCESS_ADDRESSES": "local"},
    ],
)
def test_lone_process_stays_alone(asked, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with joined(heartbeat_timeout=HEARTBEAT):
        assert not asked


@pytest.mark.parametrize("platforms", ["cpu", "tpu,cpu"])
def test_machine_with_tpus_asks_how_many_hosts_its_slice_has(asked, monkeypatch, platforms):
    monkeypatch.setattr(type(jax.config), "jax_platforms", platforms, raising=False)
    with joined(heartbeat_timeout=HEARTBEAT):
        assert len(asked) == (platforms != "cpu")


def test_given_place_does_without_the_environment(asked, monkeypatch):
    for name, value in SLURM_STEP.items():
        monkeypatch.setenv(name, value)
    with joined("10.0.0.1:1234", 3, 2, heartbeat_timeout=HEARTBEAT):
        pass
    ((place, options),) = asked
    assert place == ("10.0.0.1:1234", 3, 2) and options["cluster_detection_method"] == "deactivate"


def test_failed_detection_says_what_to_set(asked, monkeypatch):
    def fail(*place, **options):
        raise ValueError("coordinator_address should be defined.\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(STGTError) as error, joined(heartbeat_timeout=HEARTBEAT):
        pass
    assert "(found by Open MPI): coordinator_address should be defined.; " in str(error.value)
    assert "or give --coordinator, --num-processes and --process-id" in str(error.value)


class Members:
    """Real processes of `member.py`, of a run of two; an event for each that is started."""

    def __init__(self, *events):
        coordinator = f"127.0.0.1:{free_port()}"
        self.processes = [
            subprocess.Popen(
                [sys.executable, Path(__file__).with_name("member.py"), coordinator, "2", str(index), event],
                env=environment(devices=2), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            for index, event in enumerate(events)
        ]  # fmt: skip

    def end(self, within):
        """The exit statuses and what each wrote last; all must have ended `within` seconds after the first did."""
        while all(process.poll() is None for process in self.processes):
            time.sleep(0.05)
        deadline = time.monotonic() + within
        try:
            said = [process.communicate(timeout=max(0.1, deadline - time.monotonic()))[1] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [
            (process.returncode, text.splitlines()[-1:]) for process, text in zip(self.processes, said, strict=True)
        ]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_process_ends_the_others_with_one_line(victim):
    events = ["", ""]
    events[victim] = "killed"
    ends = Members(*events).end(ENDED_WITHIN)
    assert ends[victim][0] == -signal.SIGKILL
    status, (line,) = ends[1 - victim]
    assert status == 1 and line.startswith(LOST)


@pytest.mark.slow
def test_process_with_a_mistake_ends_with_it_and_the_others_with_it():
    (first, _), (status, (line,)) = Members("mistaken", "").end(ENDED_WITHIN)
    assert first == 1 and status == 1 and line.startswith(LOST)


@pytest.mark.slow
def test_process_that_nobody_joins_says_so():
    ((status, (line,)),) = Members("impatient").end(within=0)
    assert status == 1 and f"did not all join within {PATIENCE} s; start all of them" in line
