"""Descriptions of TPU slices from libtpu, which needs no TPU for them."""

import dataclasses
import importlib.util
import os
from dataclasses import dataclass

import jax
from jax.experimental import topologies

from experiments.perf.compile.chips import CHIPS, Chip, parse_topology
from stgt_jax.checks import check
from stgt_jax.errors import STGTError

# Without these libtpu looks for a local TPU and cannot be loaded by two processes.
_LIBTPU = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


@dataclass(frozen=True)
class Topology:
    """One or more TPU slices of the same kind."""

    name: str
    num_slices: int
    num_chips: int  # of all slices
    devices: tuple[jax.Device, ...]

    @property
    def device(self) -> Chip:
        """The specifications of one device: a chip, or on tpu7x one of its two cores."""
        chip, devices_per_chip = CHIPS[self.name.partition(":")[0]], len(self.devices) // self.num_chips
        return Chip(*(value / devices_per_chip for value in dataclasses.astuple(chip)))

    def to_dict(self) -> dict[str, str | int]:
        """Returns the name and the numbers of slices, chips and devices, for JSON."""
        numbers = {"num_slices": self.num_slices, "num_chips": self.num_chips, "num_devices": len(self.devices)}
        return {"name": self.name, **numbers}


def find_topology(name: str, num_slices: int = 1) -> Topology:
    """Returns libtpu's description of the slices.

    Raises:
      STGTError: libtpu is not installed or knows no such slice, or num_slices is not positive.
    """
    generation, num_chips = parse_topology(name)
    check(num_slices > 0, f"--num-slices={num_slices} must be greater than 0")
    has_compiler = importlib.util.find_spec("libtpu") is not None
    check(has_compiler, "compiling for a TPU needs the TPU's compiler: pip install libtpu")
    for variable, value in _LIBTPU.items():
        os.environ.setdefault(variable, value)
    try:
        form: dict[str, int | str] = {"num_slices": num_slices} if num_slices > 1 else {}
        if generation == "v4":  # both cores are one device, as on Cloud TPU; libtpu's default is one device a core
            form["chip_config_name"] = "megacore"
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **form).devices
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise STGTError(f"--topology={name}: libtpu knows no such slice ({reason})") from error
    return Topology(name, num_slices, num_chips * num_slices, tuple(devices))
