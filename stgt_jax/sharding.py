"""How arrays lie on the devices: one mesh of four axes, and one table that says which of them split what.

`data` copies the parameters and splits the batch, `fsdp` splits both, `sequence` splits the frames of each clip,
`tensor` the parameters within a matrix product. A layout never changes a result, it only decides where the numbers are
computed. Code names dimensions by what they are (`shard(x, "clip", "token", "feature")`); the table does the rest.
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

# Name of a dimension -> the mesh axes that split it, where the mesh has them and they divide it.
AXES: dict[str, tuple[str, ...]] = {
    "clip": ("data", "fsdp"),
    "frame": ("sequence",),
    "node": ("sequence",),  # patches of all frames, frame by frame
    "token": (),
    "feature": (),  # of an activation in the residual stream
    "head": ("tensor",),
    "hidden": ("tensor",),  # between two products: all heads together, or the width of an MLP
    "word": ("tensor",),
    "width": ("fsdp",),  # of a parameter, the side that meets the residual stream
    "pixel": (),
}
# Name of a parameter -> the names of its trailing dimensions; the first pattern found decides. Leading dimensions, such
# as the layer axis of stacked blocks, stay whole. Products into a wide space split their columns, those back into the
# residual stream their rows: then the activations between the two need no exchange.
PARAMETERS = (
    (r"/patch_embed/kernel$", ("pixel", "pixel", "pixel", "width")),  # height, width, colour, D
    (r"/embedding$", ("word", "width")),
    (r"/(out|down)/kernel$", ("hidden", "width")),
    (r"(^|/)kernel$", ("width", "hidden")),
    # Every device holds these whole.
    (r"(^|/)(bias|lm_bias|scale|temperature)$", ()),
    (r"(^|/)(cls_token|pos_embed|query_tokens|time_embed|pos_2d_embed)$", ()),
)
MIN_SHARDED_SIZE = 1024  # elements a layer; below it splitting costs more than it saves


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges `devices` (default: all of them) in a mesh of axes (data, fsdp, sequence, tensor).

    Of several TPU slices, between which the network is slow, data spans them and the other axes stay within one.

    Raises STGTError if the axes of `config` do not multiply to the number of devices, split clips over processes, data
    does not divide by the number of slices, or an axis is "auto", which `stgt_jax.train.mesh` must have chosen.
    """
    devices = jax.devices() if devices is None else list(devices)
    axes = dataclasses.asdict(config)
    if "auto" in axes.values():
        raise STGTError(f"mesh={axes}: an axis is auto; take what stgt_jax.train.mesh.choose_mesh makes of it")
    sizes = tuple(axis_sizes(config, len(devices)).values())
    if math.prod(sizes) != len(devices):
        raise STGTError(
            f"mesh: {', '.join(f'{name}={size}' for name, size in axes.items())} makes"
            f" {' x '.join(map(str, sizes))} = {math.prod(sizes)} devices but there are {len(devices)};"
            " choose axes that multiply to it, or -1 for one of them"
        )
    own = devices_a_process(devices)
    if own % (parts := sizes[-1] * sizes[-2]):
        raise STGTError(
            f"mesh: sequence={sizes[-2]} x tensor={sizes[-1]} = {parts} devices share each clip, but a process has"
            f" {own} and loads its own clips; choose axes whose product divides that"
        )
    types = (AxisType.Auto,) * len(axes)
    slices = len(set(map(slice_of, devices)))
    if slices == 1:
        return jax.make_mesh(sizes, tuple(axes), axis_types=types, devices=devices)
    if sizes[0] % slices:
        raise STGTError(f"mesh: data={sizes[0]} does not divide by the {slices} slices of TPUs, which it spans")
    within, between = (sizes[0] // slices, *sizes[1:]), (slices, *[1] * len(sizes[1:]))
    return Mesh(mesh_utils.create_hybrid_device_mesh(within, between, devices), tuple(axes), axis_types=types)


def axis_sizes(config: MeshConfig, count: int) -> dict[str, int]:
    """The number of devices along each axis, of `count` in all: -1 is what the others leave, "auto" counts as 1."""
    sizes = {axis: 1 if size == "auto" else size for axis, size in dataclasses.asdict(config).items()}
    left = max(1, count // abs(math.prod(sizes.values())))
    return {axis: left if size == -1 else size for axis, size in sizes.items()}


def devices_a_process(devices: Sequence[jax.Device]) -> int:
    """How many of `devices` a process has; all have equally many."""
    return sum(device.process_index == devices[0].process_index for device in devices)


def slice_of(device: jax.Device) -> int:
    """The slice that a TPU belongs to; 0 for other devices."""
    return getattr(device, "slice_index", 0)


def replicated(mesh: Mesh) -> NamedSharding:
    """The layout of what every device holds whole."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The layout of what has a batch dimension first: that one over the axes data and fsdp."""
    return NamedSharding(mesh, P(AXES["clip"]))


def batch_layout(mesh: Mesh) -> dict[str, NamedSharding]:
    """The layout of a training batch: of videos [B, T, ...] the frames are split as well, over the axis sequence."""
    video = NamedSharding(mesh, P(AXES["clip"], AXES["frame"]))
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


def mesh_axes(mesh: Mesh | AbstractMesh, name: str, size: int) -> tuple[str, ...]:
    """The mesh axes that split a dimension of that name: as many of the first in `AXES` as together divide `size`."""
    axes = tuple(axis for axis in AXES[name] if mesh.shape.get(axis, 1) > 1)
    while size % math.prod(mesh.shape[axis] for axis in axes):
        axes = axes[:-1]
    return axes


def shard(x: jax.Array, *names: Any) -> jax.Array:
    """Lays an activation out on the mesh in use, by the names of its dimensions; without a mesh, `x` as it is.

    An Ellipsis stands for dimensions that the compiler may split as it likes. It does well but for features: where the
    product that makes them has a kernel split over `tensor` and `fsdp`, it gives some devices each other's clips (jax
    0.10 and 0.11); and for clips, which it gives up where several batches come together.
    """
    mesh = mesh_to_split_over()
    if mesh is None:
        return x
    if ... in names:
        at = names.index(...)
        names = (*names[:at], *[None] * (x.ndim - len(names) + 1), *names[at + 1 :])
    spec = [
        P.UNCONSTRAINED if name is None else mesh_axes(mesh, name, size) or None
        for name, size in zip(names, x.shape, strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, P(*spec))


def param_shardings(tree: Any, mesh: Mesh) -> Any:
    """Returns the NamedSharding of every leaf by `PARAMETERS`.

    Args:
      tree: anything with leaves of a `shape`, named by their path: parameters, or a train state, whose optimizer
        moments end in the names of their parameters and so lie where those do.
      mesh: of `make_mesh`.

    Raises STGTError for a parameter that the table does not know: it would be held whole by every device.
    """

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, P(*(axes or None for axes in _layout(_name(path), leaf.shape, mesh.shape))))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def bytes_held(tree: Any, sizes: Mapping[str, int]) -> int:
    """Bytes of a tree of shapes that each device would hold, were the mesh axes as long as `sizes` says."""
    total = 0
    for name, leaf in _named(tree):
        parts = math.prod(sizes[axis] for axes in _layout(name, leaf.shape, sizes) for axis in axes)
        total += math.prod(leaf.shape) * leaf.dtype.itemsize // parts
    return total


def unsplit_params(tree: Any, sizes: Mapping[str, int], axis: str) -> list[str]:
    """Names of the parameters that `axis` is to split but cannot, were the mesh axes as long as `sizes` says.

    1408 = 128 x 11, say, divides by 128, but not by 256.
    """
    if sizes[axis] == 1:
        return []
    found = []
    for name, leaf in _named(tree):
        wanted = any(axis in AXES[dim] for dim in _dimension_names(name, leaf.shape))
        if wanted and not any(axis in axes for axes in _layout(name, leaf.shape, sizes)):
            found.append(f"{name} {leaf.shape}")
    return found


def _named(tree: Any) -> list[tuple[str, Any]]:
    return [(_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _layout(name: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> list[tuple[str, ...]]:
    """The mesh axes of each dimension of a parameter; empty where it stays whole."""
    names = _dimension_names(name, shape)
    leading = len(shape) - len(names)
    return [()] * leading + _place(names, shape[leading:], sizes) if names else []


def _dimension_names(name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Of the trailing dimensions of a parameter; none where it stays whole."""
    if not shape:
        return ()
    names = next((names for pattern, names in PARAMETERS if re.search(pattern, name)), None)
    if names is None:
        raise STGTError(f"no row of stgt_jax.sharding.PARAMETERS says how {name} {shape} lies on the devices; add one")
    small = math.prod(shape[len(shape) - len(names) :]) < MIN_SHARDED_SIZE
    return () if small or len(shape) < len(names) else names


def _place(names: tuple[str, ...], dims: tuple[int, ...], sizes: Mapping[str, int]) -> list[tuple[str, ...]]:
    """The mesh axes of each dimension: those of its name; one that does not divide it goes to one that it divides."""
    placed: list[tuple[str, ...]] = [()] * len(dims)
    parts = [1] * len(dims)
    for owner, name in enumerate(names):
        for axis in AXES[name]:
            size = sizes.get(axis, 1)
            fitting = [d for d in range(len(dims)) if dims[d] % (parts[d] * size) == 0]
            if fitting and size > 1:
                # The dimension of that name, else one still whole, else the wider.
                best = min((d != owner, parts[d], -dims[d], d) for d in fitting)[-1]
                placed[best] += (axis,)
                parts[best] *= size
    return placed
