"""Imported before anything that uses jax: the CPU poses as 8 devices, and what is compiled is kept."""

import os
import sys
from pathlib import Path

from processes import QUICK_TO_COMPILE, ROOT

FLAGS = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{FLAGS} --xla_force_host_platform_device_count=8 {QUICK_TO_COMPILE}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

sys.path.append(str(Path(sys.prefix) / "tpu"))  # where `make test` puts the TPU's compiler, for the tests alone

import jax  # noqa: E402  (reads the platforms above)

jax.devices()  # reads the flags: now, as libtpu, which reads them later, aborts at one that is the CPU's alone
os.environ["XLA_FLAGS"] = FLAGS
# Test processes that run at the same time, and later runs of the tests, read what one has compiled.
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
