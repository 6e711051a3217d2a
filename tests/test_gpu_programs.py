"""The programs for NVIDIA GPUs, compiled by XLA's CUDA compiler, which needs no GPU: there is none in most places."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT

pytestmark = pytest.mark.slow
COMPILER = Path(sys.prefix) / "cuda"  # where `make test` puts it
TRITON, CUDNN, CUDNN_BACKWARD = "__gpu$xla.gpu.triton", "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"


@pytest.fixture(scope="module")
def calls():
    """The kernels that each of the programs of gpu_programs.py calls."""
    if not COMPILER.exists():
        pytest.skip(f"no CUDA compiler in {COMPILER}; `make test` installs it on Linux")
    environment = {
        "PYTHONPATH": f"{ROOT}:{COMPILER}",
        "JAX_PLATFORMS": "cpu",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    command = [sys.executable, Path(__file__).with_name("gpu_programs.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_graph_attention_is_three_kernels_that_fit_into_shared_memory(calls):
    programs = [name for name in calls if name.startswith("graph attention")]
    assert len(programs) == 4
    for name in programs:
        assert calls[name].count(TRITON) == 3  # forward, gradient of queries, of keys and values


def test_frames_of_an_odd_number_of_tokens_train_with_cudnn(calls):
    assert calls["frames"] == [CUDNN, CUDNN_BACKWARD]


def test_train_step_split_over_eight_gpus_has_every_kernel(calls):
    assert calls["train step"].count(TRITON) == 3
    assert {CUDNN, CUDNN_BACKWARD} <= set(calls["train step"])
