"""Chooses the mesh axes that a config leaves to "auto", from the number of devices, their memory and the batch.

Copies of the parameters (`data`) are preferred, as they exchange least; then parameters split over the fewest devices
whose memory holds them (`fsdp`); then, where there are more devices than clips, clips split by frames (`sequence`). An
fsdp axis that some parameter has no dimension for is cut: what is left of it becomes part of `data`.
"""

import dataclasses
import itertools
import logging
import math
from collections.abc import Iterator, Sequence

import jax
from jax.sharding import Mesh

from stgt_jax.config import MeshConfig, TrainConfig
from stgt_jax.models.stgt import STGT
from stgt_jax.sharding import axis_sizes, bytes_held, devices_a_process, make_mesh, slice_of, unsplit_params
from stgt_jax.train.state import param_shapes, state_shapes

STATE_SHARE = 0.5  # of a device's memory that the state and the gradients may take; the rest is for activations


def mesh_for(
    model: STGT, config: TrainConfig, devices: Sequence[jax.Device] | None = None, memory: float | None = None
) -> Mesh:
    """The mesh to train on, see `choose_mesh` and `make_mesh`."""
    return make_mesh(choose_mesh(model, config, devices, memory), devices)


def choose_mesh(
    model: STGT, config: TrainConfig, devices: Sequence[jax.Device] | None = None, memory: float | None = None
) -> MeshConfig:
    """The mesh of `config` with numbers for every "auto", and with an fsdp axis that divides the parameters.

    Args:
      model: the model.
      config: of the training, with the batch and the mesh.
      devices: to train on; by default all.
      memory: bytes a device has; by default what the device tells. A CPU's is shared: there "auto" splits nothing.

    Returns:
      A config for `make_mesh`, which refuses what does not fit the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    asked = config.mesh if config.mesh.fsdp == "auto" else _with_fsdp_that_divides(model, config.mesh, len(devices))
    tensor = axis_sizes(asked, len(devices))["tensor"]
    if unsplit := unsplit_params(param_shapes(model), {"tensor": tensor}, "tensor"):
        _say(f"mesh: tensor={tensor} divides no dimension of {len(unsplit)} parameters, such as {unsplit[0]}")
    if "auto" not in (asked.fsdp, asked.sequence):
        return asked
    possible = list(_possible(model, config, asked, devices))
    if not possible:  # what `make_mesh` will explain
        return dataclasses.replace(asked, fsdp=_number(asked.fsdp), sequence=_number(asked.sequence))
    memory = _memory_of_one(devices) if memory is None else memory
    chosen = possible[0] if memory is None else _first_that_fits(model, config, possible, memory)
    _say(f"mesh: auto is {', '.join(f'{axis}={n}' for axis, n in dataclasses.asdict(chosen).items())}")
    return chosen


def _memory_of_one(devices: Sequence[jax.Device]) -> float | None:
    """Of the first device of this process, as it can ask no other; None where it does not tell."""
    own = next((device for device in devices if device.process_index == jax.process_index()), None)
    return ((own.memory_stats() if own else None) or {}).get("bytes_limit")


def _possible(
    model: STGT, config: TrainConfig, asked: MeshConfig, devices: Sequence[jax.Device]
) -> Iterator[MeshConfig]:
    """The meshes of all devices that divide slices, clips, frames and parameters; those of the fewest parts first."""
    count, clips = len(devices), config.batch_size // config.accumulation_steps
    own, slices = devices_a_process(devices), len(set(map(slice_of, devices)))
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    sequences = divisors if asked.sequence == "auto" else [asked.sequence]
    fsdps = [asked.fsdp]
    if asked.fsdp == "auto":
        fsdps = [n for n in divisors if not _unsplit_by_fsdp(model, n, asked.tensor)]
    for sequence, fsdp in itertools.product(sequences, fsdps):
        assert isinstance(sequence, int) and isinstance(fsdp, int)
        data, rest = divmod(count, fsdp * sequence * asked.tensor)
        if (
            data > 0
            and rest == 0
            and data % slices == 0
            and asked.data in (-1, data)
            and clips % (data * fsdp) == 0
            and model.config.num_frames % sequence == 0
            and own % (sequence * asked.tensor) == 0
        ):
            yield MeshConfig(data, fsdp, sequence, asked.tensor)


def _first_that_fits(model: STGT, config: TrainConfig, meshes: Sequence[MeshConfig], memory: float) -> MeshConfig:
    """The first whose devices hold the train state and the gradients; if none, the one whose devices hold least."""
    state = state_shapes(model, config)

    def held(mesh: MeshConfig) -> int:
        sizes = dataclasses.asdict(mesh)
        return bytes_held(state, sizes) + bytes_held(state.params, sizes)

    fitting = (mesh for mesh in meshes if held(mesh) <= memory * STATE_SHARE)
    return next(fitting, None) or min(meshes, key=held)


def _with_fsdp_that_divides(model: STGT, mesh: MeshConfig, count: int) -> MeshConfig:
    sizes = axis_sizes(mesh, count)
    fsdp, tensor = sizes["fsdp"], sizes["tensor"]
    unsplit = _unsplit_by_fsdp(model, fsdp, tensor)
    if not unsplit or count % math.prod(sizes.values()):  # the latter no mesh of all devices has: `make_mesh` says so
        return mesh
    shorter = max(n for n in range(1, fsdp) if fsdp % n == 0 and not _unsplit_by_fsdp(model, n, tensor))
    copies = fsdp // shorter
    _say(
        f"mesh: fsdp={fsdp} divides no dimension of {unsplit[0]}; parameters are split over fsdp={shorter} devices and"
        f" held {copies} times (data x {copies})"
    )
    return dataclasses.replace(mesh, fsdp=shorter, data=mesh.data if mesh.data == -1 else mesh.data * copies)


def _unsplit_by_fsdp(model: STGT, fsdp: int, tensor: int) -> list[str]:
    return unsplit_params(param_shapes(model), {"fsdp": fsdp, "tensor": tensor}, "fsdp")


def _number(size: int | str) -> int:
    return size if isinstance(size, int) else 1


def _say(message: str) -> None:
    logging.getLogger(__name__).info(message)
