"""What the tests of operations share."""

import types

import jax
import pytest

from stgt_jax.ops import platform


@pytest.fixture
def gpu_of(monkeypatch: pytest.MonkeyPatch):
    """Returns the function that pretends this machine's NVIDIA GPU is of a compute capability."""

    def pretend(capability: str) -> None:
        monkeypatch.setattr(platform, "target_platform", lambda: "gpu")
        device = types.SimpleNamespace(compute_capability=capability)
        monkeypatch.setattr(jax, "local_devices", lambda backend: [device])

    return pretend
