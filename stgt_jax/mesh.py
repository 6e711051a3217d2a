"""The mesh: the devices along four named axes, and the choice of the axis sizes that a config leaves to "auto".

`data` copies the parameters and splits the batch, `fsdp` splits both, `sequence` splits the frames of each clip, and
`tensor` splits parameters within a matrix product. How arrays lie on the mesh is the subject of `sharding`.

"auto" prefers copies of the parameters (`data`), which need the least communication. Where they do not fit into memory,
they are split over as few devices as possible (`fsdp`). Where there are more devices than clips, frames are split
(`sequence`).
"""

import dataclasses
import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from stgt_jax.config import MeshConfig
from stgt_jax.errors import STGTError
from stgt_jax.sharding import bytes_held, unsplit_params

STATE_SHARE = 0.5  # of a device's memory that state and gradients may take; the rest is for activations
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Workload:
    """What the devices of a mesh will hold and compute. Arrays are given by shape and dtype."""

    params: Any  # all parameters
    held: Any  # all that is in memory during a step, but for activations: the train state and the gradients
    clips: int  # of a batch, or of one accumulation step
    num_frames: int  # T


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges `devices` (by default all) in a mesh with the axes (data, fsdp, sequence, tensor).

    The network between TPU slices is slow: `data` goes over all slices, the other axes stay within one.

    Raises:
      STGTError: the axes do not multiply to the number of devices, a clip would be split over processes, data does not
        divide by the number of slices, or an axis is "auto", which `choose_mesh` turns into a number.
    """
    devices = jax.devices() if devices is None else list(devices)
    axes = dataclasses.asdict(config)
    if "auto" in axes.values():
        raise STGTError(f"mesh={axes}: an axis is auto; use the config that stgt_jax.mesh.choose_mesh returns for it")
    check_axes(config, len(devices))
    sizes = tuple(axis_sizes(config, len(devices)).values())
    own = _devices_of_a_process(devices)
    if own % (parts := sizes[-1] * sizes[-2]):
        raise STGTError(
            f"mesh: sequence={sizes[-2]} x tensor={sizes[-1]} = {parts} devices share each clip, but a process has"
            f" {own} and loads its own clips; choose axes whose product divides that"
        )
    types = (AxisType.Auto,) * len(axes)
    slices = _number_of_slices(devices)
    if slices == 1:
        return jax.make_mesh(sizes, tuple(axes), axis_types=types, devices=devices)
    if sizes[0] % slices:
        raise STGTError(f"mesh: data={sizes[0]} does not divide by the {slices} slices of TPUs; choose a multiple")
    within, between = (sizes[0] // slices, *sizes[1:]), (slices, *[1] * len(sizes[1:]))
    return Mesh(mesh_utils.create_hybrid_device_mesh(within, between, devices), tuple(axes), axis_types=types)


def choose_mesh(
    config: MeshConfig,
    workload: Workload,
    devices: Sequence[jax.Device] | None = None,
    memory: float | None = None,
) -> MeshConfig:
    """Chooses a number for every "auto".

    An fsdp axis that divides no dimension of some parameter is shortened, and `data` takes over what is left of it.

    Args:
      config: the axes asked for.
      workload: what the mesh is chosen for.
      devices: by default all.
      memory: bytes of memory of each device; by default what the device reports. CPUs report none; "auto" then splits
        no parameters.

    Returns:
      A config for `make_mesh`, which refuses what the devices do not allow.

    Raises:
      STGTError: the axes given as numbers do not multiply to the number of devices, or to a divisor of it where others
        are "auto".
    """
    devices = jax.devices() if devices is None else list(devices)
    check_axes(config, len(devices))
    if config.fsdp != "auto":
        config = _with_fsdp_that_divides(config, workload.params, len(devices))
    tensor = axis_sizes(config, len(devices))["tensor"]
    if unsplit := unsplit_params(workload.params, {"tensor": tensor}, "tensor"):
        _log.info("mesh: tensor=%d divides no dimension of %d parameters, such as %s", tensor, len(unsplit), unsplit[0])
    if "auto" not in (config.fsdp, config.sequence):
        return config
    candidates = list(_candidates(config, workload, devices))
    if not candidates:  # `make_mesh` or the train step says why
        return MeshConfig(**_without_auto(config))
    memory = memory_of_a_device(devices) if memory is None else memory
    chosen = candidates[0] if memory is None else _first_that_fits(candidates, workload.held, memory)
    _log.info("mesh: auto is %s", ", ".join(f"{axis}={size}" for axis, size in dataclasses.asdict(chosen).items()))
    return chosen


def axis_sizes(config: MeshConfig, count: int) -> dict[str, int]:
    """The number of devices along each axis, of `count` in all: -1 takes what the others leave, "auto" counts as 1."""
    sizes = _without_auto(config)
    left = max(1, count // abs(math.prod(sizes.values())))
    return {axis: left if size == -1 else size for axis, size in sizes.items()}


def _without_auto(config: MeshConfig) -> dict[str, int]:
    return {axis: 1 if size == "auto" else size for axis, size in dataclasses.asdict(config).items()}


def slice_of(device: jax.Device) -> int:
    """The slice that a TPU belongs to; 0 for other devices."""
    return getattr(device, "slice_index", 0)


def _number_of_slices(devices: Sequence[jax.Device]) -> int:
    return len(set(map(slice_of, devices)))


def _devices_of_a_process(devices: Sequence[jax.Device]) -> int:
    """How many of `devices` belong to a process; all processes have equally many."""
    return sum(device.process_index == devices[0].process_index for device in devices)


def memory_of_a_device(devices: Iterable[jax.Device]) -> float | None:
    """Bytes, as reported by the first device of this process (others cannot be asked); None where it reports none."""
    own = next((device for device in devices if device.process_index == jax.process_index()), None)
    return ((own.memory_stats() if own else None) or {}).get("bytes_limit")


def check_axes(config: MeshConfig, count: int) -> None:
    """Refuses axes that do not multiply to the number of devices; with "auto", to a divisor of it."""
    axes, sizes = dataclasses.asdict(config), axis_sizes(config, count).values()
    product = math.prod(sizes)
    if product == count or ("auto" in axes.values() and count % product == 0):
        return
    raise STGTError(
        f"mesh: {', '.join(f'{name}={size}' for name, size in axes.items())} makes"
        f" {' x '.join(map(str, sizes))} = {product} devices but there are {count};"
        " choose axes that multiply to it, or -1 for one of them"
    )


def _candidates(config: MeshConfig, workload: Workload, devices: Sequence[jax.Device]) -> Iterator[MeshConfig]:
    """All meshes whose axes divide devices, slices, clips, frames and parameters; the least split ones first."""
    count, slices, own = len(devices), _number_of_slices(devices), _devices_of_a_process(devices)
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    sequences = divisors if config.sequence == "auto" else [config.sequence]
    fsdps = [config.fsdp]
    if config.fsdp == "auto":
        fsdps = [n for n in divisors if not _unsplit_by_fsdp(workload.params, n, config.tensor)]
    for sequence, fsdp in itertools.product(sequences, fsdps):
        assert isinstance(sequence, int) and isinstance(fsdp, int)
        data, rest = divmod(count, fsdp * sequence * config.tensor)
        if (
            data > 0
            and rest == 0
            and data % slices == 0
            and config.data in (-1, data)
            and workload.clips % (data * fsdp) == 0
            and workload.num_frames % sequence == 0
            and own % (sequence * config.tensor) == 0
        ):
            yield MeshConfig(data, fsdp, sequence, config.tensor)


def _first_that_fits(candidates: Sequence[MeshConfig], held: Any, memory: float) -> MeshConfig:
    """The first candidate whose devices can hold the arrays `held`; if none can, the one that needs least memory."""

    def needed(mesh: MeshConfig) -> int:
        return bytes_held(held, dataclasses.asdict(mesh))

    fitting = (mesh for mesh in candidates if needed(mesh) <= memory * STATE_SHARE)
    return next(fitting, None) or min(candidates, key=needed)


def _with_fsdp_that_divides(config: MeshConfig, params: Any, count: int) -> MeshConfig:
    """Shortens the fsdp axis until every parameter that it is to split has a dimension that it divides."""
    sizes = axis_sizes(config, count)
    fsdp, tensor = sizes["fsdp"], sizes["tensor"]
    unsplit = _unsplit_by_fsdp(params, fsdp, tensor)
    if not unsplit:
        return config
    shorter = max(n for n in range(1, fsdp) if fsdp % n == 0 and not _unsplit_by_fsdp(params, n, tensor))
    copies = fsdp // shorter
    _log.info(
        "mesh: fsdp=%d divides no dimension of %s; parameters are split over fsdp=%d devices and held %d times"
        " (data x %d)", fsdp, unsplit[0], shorter, copies, copies,
    )  # fmt: skip
    return dataclasses.replace(config, fsdp=shorter, data=config.data if config.data == -1 else config.data * copies)


def _unsplit_by_fsdp(params: Any, fsdp: int, tensor: int) -> list[str]:
    return unsplit_params(params, {"fsdp": fsdp, "tensor": tensor}, "fsdp")
