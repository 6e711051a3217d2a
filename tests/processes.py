"""What the tests share that start processes of their own."""

import os
import socket
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The tests compile far more than they compute. Alike in all: what one compiled the next finds.
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0"
if version("jaxlib") < "0.11":  # which knows no such flags
    QUICK_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def environment(devices: int = 1) -> dict[str, str]:
    """Of a process that finds this code, whose CPU poses as so many devices, and that keeps what it compiles."""
    return os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK_TO_COMPILE}",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
    }


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
