"""Which implementation of graph attention runs, and that the log says so once."""

import logging
import re

import jax
import jax.numpy as jnp
import pytest

from stgt_jax.errors import STGTError
from stgt_jax.ops.graph_attention import banded, graph_attention, pallas_gpu, pallas_tpu, select

QUERY = jax.ShapeDtypeStruct((1, 2, 16, 2, 88), jnp.bfloat16)
TOO_WIDE = QUERY.update(shape=(1, 2, 16, 2, 256))  # for the GPU kernel


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch):
    """Returns the function that pretends to trace for a platform."""
    return lambda platform: monkeypatch.setattr(select, "target_platform", lambda: platform)


@pytest.mark.parametrize(("platform", "module"), [("cpu", banded), ("tpu", pallas_tpu), ("gpu", pallas_gpu)])
def test_each_platform_has_its_own(on, platform: str, module) -> None:
    on(platform)
    assert select.choose("auto", QUERY) is module
    assert select.choose("banded", QUERY) is banded


def test_what_the_kernel_cannot_take_goes_to_plain_xla_unless_forced(on) -> None:
    on("gpu")
    assert select.choose("auto", TOO_WIDE) is banded
    with pytest.raises(STGTError, match=r"'pallas_gpu' takes heads of width 128 at most, not 256.*'banded'"):
        select.choose("pallas_gpu", TOO_WIDE)


def test_gpu_too_old_for_triton_has_plain_xla(on, gpu_of) -> None:
    on("gpu")
    for capability, module in (("7.5", banded), ("8.0", pallas_gpu), ("10.0", pallas_gpu)):
        gpu_of(capability)
        assert select.choose("auto", QUERY) is module


def test_log_says_once_what_runs_and_why(on, caplog: pytest.LogCaptureFixture) -> None:
    select._log_once.cache_clear()
    caplog.set_level(logging.INFO, "stgt_jax")
    on("gpu")
    for query in (QUERY, QUERY, TOO_WIDE, TOO_WIDE):
        select.choose("auto", query)
    first, second = caplog.messages
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert first == "graph attention on gpu: pallas_gpu"
    assert second.startswith("graph attention on gpu: banded (the kernel of this platform takes heads")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"key": jnp.zeros((1, 2, 1, 2))}, "key float32(1, 2, 1, 2) must be like query float32(1, 4, 1, 2)"),
        ({"value": jnp.zeros((1, 4, 1, 2), jnp.bfloat16)}, "value bfloat16(1, 4, 1, 2) must be like query"),
        ({"nodes": jnp.zeros((1, 2, 3))}, "nodes (1, 2, 3) must be [B, N, D]"),
        ({"num_frames": 0}, "num_frames=0 does not divide"),
        ({"num_frames": -2}, "num_frames=-2 does not divide"),
        ({"dropout_rate": 1.0}, "dropout_rate=1.0 must lie in [0, 1)"),
        ({"dropout_rate": -0.5}, "dropout_rate=-0.5 must lie in [0, 1)"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(changes, complaint: str) -> None:
    array = jnp.zeros((1, 4, 1, 2))
    arguments = {"query": array, "key": array, "value": array, "nodes": jnp.zeros((1, 4, 3)), "num_frames": 2}
    with pytest.raises(ValueError, match=re.escape(complaint)):
        graph_attention(**(arguments | changes), sim_threshold=0.1)


def test_misspelt_implementation_is_refused_with_the_nearest() -> None:
    array = jnp.zeros((1, 4, 1, 2))
    with pytest.raises(ValueError, match="'band' is unknown; did you mean 'banded'"):
        graph_attention(array, array, array, array[:, :, 0], num_frames=2, sim_threshold=0.1, implementation="band")
