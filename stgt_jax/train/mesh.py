"""Chooses the mesh axes that a config leaves to "auto", from the number of devices, their memory and the batch.

Copies of the parameters (`data`) are preferred, as they exchange least; then parameters split over the fewest devices
whose memory holds them (`fsdp`); then, where there are more devices than clips, clips split by frames (`sequence`). An
fsdp axis that some parameter has no dimension for is cut: what is left of it becomes part of `data`.
"""

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Sequence

import jax
from jax.sharding import Mesh

from stgt_jax.config import MeshConfig, TrainConfig
from stgt_jax.models.stgt import STGT
from stgt_jax.sharding import bytes_held, make_mesh, unsplit_params
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
    memory = _memory_of_one(devices) if memory is None else memory
    asked = config.mesh
    if "auto" in (asked.fsdp, asked.sequence):
        possible = list(_possible(model, config, devices))
        if not possible:  # what `make_mesh` will explain
            return dataclasses.replace(asked, fsdp=_number(asked.fsdp), sequence=_number(asked.sequence))
        needs = {mesh: _state_bytes(model, config, mesh) for mesh in possible}
        fitting = [mesh for mesh in possible if memory is None or needs[mesh] <= memory * STATE_SHARE]
        chosen = fitting[0] if fitting else min(possible, key=needs.__getitem__)
        _say(f"mesh: auto is {', '.join(f'{axis}={n}' for axis, n in dataclasses.asdict(chosen).items())}")
    else:
        chosen = asked
    return _with_axes_that_divide(model, chosen, len(devices))


def _memory_of_one(devices: Sequence[jax.Device]) -> float | None:
    """Of the first device of this process, as it can ask no other; None where it does not tell."""
    own = next((device for device in devices if device.process_index == jax.process_index()), None)
    return ((own.memory_stats() if own else None) or {}).get("bytes_limit")


def _possible(model: STGT, config: TrainConfig, devices: Sequence[jax.Device]) -> Iterator[MeshConfig]:
    """The meshes of all devices that divide slices, clips, frames and parameters; those of the fewest parts first."""
    asked, count, clips = config.mesh, len(devices), config.batch_size // config.accumulation_steps
    own = sum(device.process_index == devices[0].process_index for device in devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    for sequence, fsdp in itertools.product(
        divisors if asked.sequence == "auto" else [asked.sequence], divisors if asked.fsdp == "auto" else [asked.fsdp]
    ):
        assert isinstance(sequence, int) and isinstance(fsdp, int)
        data, rest = divmod(count, fsdp * sequence * asked.tensor)
        if (
            data > 0
            and rest == 0
            and data % slices == 0
            and asked.data in (-1, data)
            and clips % (data * fsdp) == 0
            and model.config.graph.num_frames % sequence == 0
            and own % (sequence * asked.tensor) == 0
            and not unsplit_params(param_shapes(model), {"fsdp": fsdp, "tensor": asked.tensor})
        ):
            yield MeshConfig(data, fsdp, sequence, asked.tensor)


def _state_bytes(model: STGT, config: TrainConfig, mesh: MeshConfig) -> int:
    """Of the train state and the gradients on each device."""
    sizes, state = dataclasses.asdict(mesh), state_shapes(model, config)
    return bytes_held(state, sizes) + bytes_held(state.params, sizes)


def _with_axes_that_divide(model: STGT, mesh: MeshConfig, count: int) -> MeshConfig:
    fsdp = mesh.fsdp if mesh.fsdp != -1 else count // max(1, mesh.data * _number(mesh.sequence) * mesh.tensor)
    assert isinstance(fsdp, int)
    if fsdp < 2 or not (unsplit := unsplit_params(param_shapes(model), {"fsdp": fsdp, "tensor": mesh.tensor})):
        return mesh
    divisors = [n for n in range(1, fsdp) if fsdp % n == 0]
    splitting = [n for n in divisors if not unsplit_params(param_shapes(model), {"fsdp": n, "tensor": mesh.tensor})]
    if not splitting:
        _say(f"mesh: tensor={mesh.tensor} divides no dimension of {', '.join(unsplit)}: every device holds these whole")
        return mesh
    shorter = max(splitting)
    copies = fsdp // shorter
    _say(
        f"mesh: fsdp={fsdp} divides no dimension of {unsplit[0]}; parameters are split over fsdp={shorter} devices and"
        f" held {copies} times (data x {copies})"
    )
    return dataclasses.replace(mesh, fsdp=shorter, data=mesh.data if mesh.data == -1 else mesh.data * copies)


def _number(size: int | str) -> int:
    return size if isinstance(size, int) else 1


def _say(message: str) -> None:
    logging.getLogger(__name__).info(message)
