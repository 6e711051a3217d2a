"""The memory that a compiled program needs, and the free memory of a device."""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import jax


@dataclass(frozen=True)
class Memory:
    """Bytes that a compiled program needs on each device."""

    arguments: int
    outputs: int  # without those that overwrite a donated argument
    temporaries: int

    @property
    def total(self) -> int:
        """Bytes that must be free for the program to run."""
        return self.arguments + self.outputs + self.temporaries


def needed_memory(compiled: jax.stages.Compiled) -> Memory:
    """Returns the compiler's memory plan for a program."""
    stats = compiled.memory_analysis()
    assert stats is not None, "this platform's compiler has no memory analysis"
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
    )


def free_memory(device: jax.Device) -> float:
    """Returns the bytes that are free on a device, infinity if the device does not report them."""
    if device.platform == "cpu":
        return _free_host_memory()
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else math.inf


def _free_host_memory() -> float:
    """Returns the available memory on Linux, and the total memory on other systems."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists() and (found := re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)):
        return int(found[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
