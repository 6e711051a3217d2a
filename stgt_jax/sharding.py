"""How arrays lie on the devices: one mesh of four axes, one rule for batches, one table of rules for parameters.

`data` copies the parameters and splits the batch, `fsdp` splits both, `sequence` splits the frames of each clip,
`tensor` the parameters within a matrix product. A layout never changes a result, it only decides where the numbers are
computed.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stgt_jax.config import MeshConfig
from stgt_jax.errors import STGTError

# Name of a parameter -> mesh axes of its trailing dimensions; the first pattern found decides. Leading dimensions, such
# as the layer axis of stacked blocks, stay whole. Every device holds the parameters without a rule: norms, biases and
# tables. Products into a wide space split their columns, those back into the residual stream their rows: then the
# activations between the two need no exchange.
RULES = (
    (r"/patch_embed/kernel$", (None, None, None, "fsdp")),  # height, width, colour, D
    (r"/embedding$", ("tensor", "fsdp")),  # words, H
    (r"/(out|down)/kernel$", ("tensor", "fsdp")),
    (r"/kernel$", ("fsdp", "tensor")),  # in, out
)
# What the axes of a mesh split, where the mesh has them.
BATCH_AXES = ("data", "fsdp")
HEAD_AXES = ("tensor",)
SEQUENCE_AXES = ("sequence",)  # frames
MIN_SHARDED_SIZE = 1024  # elements a layer; below it splitting costs more than it saves


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges `devices` (default: all of them) in a mesh of axes (data, fsdp, sequence, tensor).

    Of several TPU slices, between which the network is slow, data spans them and the other axes stay within one.

    Raises STGTError if the axes of `config` do not multiply to the number of devices, split clips over processes, or
    data does not divide by the number of slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    axes = dataclasses.asdict(config)
    sizes = list(axes.values())
    if -1 in sizes:
        rest = len(devices) // -int(np.prod(sizes))  # the product is minus that of the other axes
        sizes[sizes.index(-1)] = max(1, rest)
    if int(np.prod(sizes)) != len(devices):
        raise STGTError(
            f"mesh: {', '.join(f'{name}={size}' for name, size in axes.items())} makes"
            f" {' x '.join(map(str, sizes))} = {int(np.prod(sizes))} devices but there are {len(devices)};"
            " choose axes that multiply to it, or -1 for one of them"
        )
    own = sum(device.process_index == devices[0].process_index for device in devices)
    if own % (parts := sizes[-1] * sizes[-2]):
        raise STGTError(
            f"mesh: sequence={sizes[-2]} x tensor={sizes[-1]} = {parts} devices share each clip, but a process has"
            f" {own} and loads its own clips; choose axes whose product divides that"
        )
    types = (AxisType.Auto,) * len(axes)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(sizes, tuple(axes), axis_types=types, devices=devices)
    if sizes[0] % slices:
        raise STGTError(f"mesh: data={sizes[0]} does not divide by the {slices} slices of TPUs, which it spans")
    within, between = (sizes[0] // slices, *sizes[1:]), (slices, *[1] * len(sizes[1:]))
    return Mesh(mesh_utils.create_hybrid_device_mesh(within, between, devices), tuple(axes), axis_types=types)


def replicated(mesh: Mesh) -> NamedSharding:
    """The layout of what every device holds whole."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The layout of what has a batch dimension first: that one over the axes data and fsdp."""
    return NamedSharding(mesh, P(BATCH_AXES))


def batch_layout(mesh: Mesh) -> dict[str, NamedSharding]:
    """The layout of a training batch: of videos [B, T, ...] the frames are split as well, over the axis sequence."""
    video = NamedSharding(mesh, P(BATCH_AXES, SEQUENCE_AXES))
    return {"video": video, "input_ids": batch_sharding(mesh), "attention_mask": batch_sharding(mesh)}


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process' part of a batch on its devices; the arrays returned are the global batch, [B, ...] each."""
    layout, other = batch_layout(mesh), batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(layout.get(name, other), array) for name, array in batch.items()
    }


def mesh_to_split_over() -> AbstractMesh | None:
    """The mesh in use, for what splits its own work; None on one device, and where the caller has split it already.

    Raises STGTError for a mesh with axes of type Explicit.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.explicit_axes:
        raise STGTError(
            f"the mesh in use has Explicit axes {mesh.explicit_axes}; make it with axis_types=AxisType.Auto"
        )
    return None if mesh.empty or mesh.size == 1 or mesh.manual_axes else mesh


def axes_that_divide(mesh: AbstractMesh, names: tuple[str, ...], size: int) -> tuple[str, ...]:
    """As many of the first of these axes as together divide `size`, of those that the mesh has."""
    names = tuple(name for name in names if mesh.shape.get(name, 1) > 1)
    while size % math.prod(mesh.shape[name] for name in names):
        names = names[:-1]
    return names


def whole_features(x: jax.Array) -> jax.Array:
    """Keeps the last dimension of `x` [..., D] whole on every device of the mesh in use; without a mesh, `x` as it is.

    For what enters the residual stream. Left to itself XLA may split it over `tensor`, and where the product before it
    has a kernel split over `tensor` and `fsdp`, it then gives some devices each other's clips (jax 0.10 and 0.11).
    """
    if mesh_to_split_over() is None:
        return x
    return jax.lax.with_sharding_constraint(x, P(*[P.UNCONSTRAINED] * (x.ndim - 1), None))


def param_shardings(tree: Any, mesh: Mesh) -> Any:
    """Returns the NamedSharding of every leaf by `RULES`.

    Args:
      tree: anything with leaves of a `shape`, named by their path: parameters, or a train state, whose optimizer
        moments end in the names of their parameters and so lie where those do.
      mesh: of `make_mesh`.
    """

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, _spec(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    wanted = next((axes for pattern, axes in RULES if re.search(pattern, name)), ())
    leading, dims = shape[: len(shape) - len(wanted)], shape[len(shape) - len(wanted) :]
    if not wanted or len(dims) < len(wanted) or np.prod(dims) < MIN_SHARDED_SIZE:
        return P()
    placed: list[tuple[str, ...]] = [()] * len(dims)
    parts = [1] * len(dims)
    for axis in filter(None, wanted):
        # The dimension the rule names, then one still whole, then the wider: the first that divides.
        order = sorted(range(len(dims)), key=lambda d: (wanted[d] != axis, parts[d], -dims[d]))
        fitting = [d for d in order if dims[d] % (parts[d] * mesh.shape[axis]) == 0]
        if fitting and mesh.shape[axis] > 1:
            placed[fitting[0]] += (axis,)
            parts[fitting[0]] *= mesh.shape[axis]
    return P(*[None] * len(leading), *[axes or None for axes in placed])
