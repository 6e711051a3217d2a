"""The tests run on a CPU that poses as 8 devices, and compile each program once."""

import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import QUICK_TO_COMPILE, ROOT

FLAGS = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{FLAGS} --xla_force_host_platform_device_count=8 {QUICK_TO_COMPILE}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

sys.path.append(str(Path(sys.prefix) / "tpu"))  # where `make test` puts the TPU's compiler, for the tests alone

import jax  # noqa: E402  (reads the platforms above)
import jax.numpy as jnp  # noqa: E402

jax.devices()  # reads the flags: now, as libtpu, which reads them later, aborts at one that is the CPU's alone
os.environ["XLA_FLAGS"] = FLAGS
# Test processes that run at the same time, and later runs of the tests, read what one has compiled.
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(scope="session", autouse=True)
def shared_train_step() -> Iterator[None]:
    """Runs of one process with equal models and training options share a train step and copies of one first state.

    Each call of `train` would trace and load them anew, which takes far longer than a few steps of a small model.
    """
    from stgt_jax.train import loop

    make_train_step, init_state = functools.cache(loop.make_train_step), functools.cache(loop.init_state)

    def first_state(model: Any, config: Any, mesh: jax.sharding.Mesh, params: Any = None) -> Any:
        if params is not None:
            return init_state.__wrapped__(model, config, mesh, params)
        return jax.tree.map(jnp.copy, init_state(model, config, mesh))  # copies, as a train step consumes its state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_train_step", make_train_step)
        patch.setattr(loop, "init_state", first_state)
        yield
