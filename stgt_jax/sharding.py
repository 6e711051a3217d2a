"""How arrays lie on a mesh of devices: which mesh axes split which dimensions.

Code names the dimensions of an array by what they are, as in `shard(x, "clip", "token", "feature")`; the table `AXES`
says which axes of the mesh split a dimension of that name. A layout decides only where numbers are computed, and never
changes a result. `mesh` makes the mesh and says what its axes are for.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stgt_jax.batch import Batch
from stgt_jax.errors import STGTError

# Name of a dimension -> the mesh axes that split it, where they divide it.
AXES: dict[str, tuple[str, ...]] = {
    "clip": ("data", "fsdp"),
    "frame": ("sequence",),
    "node": ("sequence",),  # the patches of all frames, frame by frame
    "token": (),
    "feature": (),  # of an activation in the residual stream
    "head": ("tensor",),
    "hidden": ("tensor",),  # between two matrix products: all heads together, or the hidden width of an MLP
    "word": ("tensor",),  # of the vocabulary
    "width": ("fsdp",),  # of a parameter: the side that reads from or writes to the residual stream
    "pixel": (),
}
# Pattern of a parameter's name -> the names of its last dimensions; the first pattern that matches counts. Dimensions
# before them, such as the layer axis of stacked blocks, stay whole. Matrices that read from the residual stream are
# split by columns, those that write to it by rows, so that devices need not exchange the activations between the two.
PARAMETERS = (
    (r"/patch_embed/kernel$", ("pixel", "pixel", "pixel", "width")),  # height, width, colour, D
    (r"/embedding$", ("word", "width")),
    (r"/(out|down)/kernel$", ("hidden", "width")),
    (r"(^|/)kernel$", ("width", "hidden")),
    # Every device holds these whole.
    (r"(^|/)(bias|lm_bias|scale|temperature)$", ()),
    (r"(^|/)(cls_token|pos_embed|query_tokens|time_embed|pos_2d_embed)$", ()),
)
MIN_SHARDED_SIZE = 1024  # elements of a parameter, in each layer; splitting a smaller one costs more than it saves


def replicated(mesh: Mesh) -> NamedSharding:
    """The layout of arrays that every device holds whole."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The layout of arrays [B, ...]: the first dimension is split over the axes data and fsdp."""
    return NamedSharding(mesh, P(AXES["clip"]))


def batch_layout(mesh: Mesh, *, answers: bool = False) -> dict[str, NamedSharding]:
    """The layout of a `Batch`, with or without answers: clips are split over data and fsdp, frames over sequence."""
    names = ("input_ids", "attention_mask", *(["answer"] if answers else []))
    return {"video": NamedSharding(mesh, P(AXES["clip"], AXES["frame"])), **dict.fromkeys(names, batch_sharding(mesh))}


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> Batch:
    """Puts this process's part of a batch on its devices, and returns the global batch."""
    layout = batch_layout(mesh, answers="answer" in batch)
    return cast(
        Batch, {name: jax.make_array_from_process_local_data(layout[name], array) for name, array in batch.items()}
    )


def mesh_to_split_over() -> AbstractMesh | None:
    """The mesh in use, for code that splits its own work; None on one device and where the work is split already.

    Raises STGTError for a mesh with axes of type Explicit.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.explicit_axes:
        raise STGTError(
            f"the mesh in use has Explicit axes {mesh.explicit_axes}; make it with axis_types=AxisType.Auto"
        )
    return None if mesh.empty or mesh.size == 1 or mesh.manual_axes else mesh


def mesh_axes(mesh: Mesh | AbstractMesh, name: str, size: int) -> tuple[str, ...]:
    """The mesh axes that split a dimension of this name and size: those of `AXES`, as many as together divide it."""
    axes = tuple(axis for axis in AXES[name] if mesh.shape.get(axis, 1) > 1)
    while size % math.prod(mesh.shape[axis] for axis in axes):
        axes = axes[:-1]
    return axes


def shard(x: jax.Array, *names: Any) -> jax.Array:
    """Lays an activation out on the mesh in use, by the names of its dimensions; without a mesh returns `x` as it is.

    An Ellipsis stands for dimensions that the compiler may split as it likes. Features and clips need their names. If a
    kernel is split over `tensor` and `fsdp`, the compiler may give devices each other's clips where it splits the
    features (jax 0.10 and 0.11). It also stops splitting clips where several batches are joined.
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
    """The layout of every leaf of a tree, by the table `PARAMETERS`.

    Args:
      tree: parameters or a train state (arrays or their shapes). The names of the optimizer's moments end in those of
        their parameters, so that they lie where these do.
      mesh: the mesh.

    Raises:
      STGTError: the table has no row for a parameter; without one every device would hold it whole.
    """

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, P(*(axes or None for axes in _layout(_name(path), leaf.shape, mesh.shape))))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def bytes_held(tree: Any, sizes: Mapping[str, int]) -> int:
    """The bytes of a tree of shapes that each device would hold on a mesh whose axes have these sizes."""
    total = 0
    for name, leaf in _named(tree):
        parts = math.prod(sizes[axis] for axes in _layout(name, leaf.shape, sizes) for axis in axes)
        total += math.prod(leaf.shape) * leaf.dtype.itemsize // parts
    return total


def unsplit_params(tree: Any, sizes: Mapping[str, int], axis: str) -> list[str]:
    """Names of the parameters that `axis` should split but cannot, on a mesh whose axes have these sizes.

    For example, 1408 = 128 x 11 divides by 128 but not by 256.
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
    """The mesh axes that split each dimension of a parameter; none at all where it stays whole."""
    names = _dimension_names(name, shape)
    leading = len(shape) - len(names)
    return [()] * leading + _place(names, shape[leading:], sizes) if names else []


def _dimension_names(name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """The names of the last dimensions of a parameter; none where it stays whole."""
    if not shape:
        return ()
    names = next((names for pattern, names in PARAMETERS if re.search(pattern, name)), None)
    if names is None:
        raise STGTError(f"stgt_jax.sharding.PARAMETERS has no row for {name} {shape}; add one that says what splits it")
    small = math.prod(shape[len(shape) - len(names) :]) < MIN_SHARDED_SIZE
    return () if small or len(shape) < len(names) else names


def _place(names: tuple[str, ...], dims: tuple[int, ...], sizes: Mapping[str, int]) -> list[tuple[str, ...]]:
    """The mesh axes of each dimension: those of its name. An axis that does not divide it goes to another dimension."""
    placed: list[tuple[str, ...]] = [()] * len(dims)
    parts = [1] * len(dims)
    for owner, name in enumerate(names):
        for axis in AXES[name]:
            size = sizes.get(axis, 1)
            fitting = [d for d in range(len(dims)) if dims[d] % (parts[d] * size) == 0]
            if fitting and size > 1:
                # Best is the dimension of that name, then one that is not split yet, then the widest.
                best = min((d != owner, parts[d], -dims[d], d) for d in fitting)[-1]
                placed[best] += (axis,)
                parts[best] *= size
    return placed
