"""Compiles the train step of a recipe for a TPU slice and analyses the program.

Nothing runs, and the state and the batch are only shapes. All figures are for one device: a chip, or on tpu7x one of
its two cores.
"""

import pathlib
import re
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.perf.bench.step import step_flops, text_length_of, video_shape
from experiments.perf.compile.collectives import DCN, ICI, Collective, find_collectives
from experiments.perf.compile.flops import program_flops
from experiments.perf.compile.hlo import Module, parse_hlo
from experiments.perf.compile.topology import Topology, find_topology
from experiments.perf.compile.traffic import hbm_bytes
from experiments.recipes import Recipe
from experiments.tables import shorten
from stgt_jax.config import MeshConfig
from stgt_jax.errors import STGTError
from stgt_jax.mesh import make_mesh, slice_of
from stgt_jax.models.stgt import STGT
from stgt_jax.sharding import batch_layout
from stgt_jax.train.memory import program_memory, total_memory
from stgt_jax.train.state import abstract_state, mesh_for
from stgt_jax.train.step import make_train_step

Figures = dict[str, Any]
NUM_LARGEST = 8  # collectives and arrays that are listed one by one
ADVICE = "lower --train.batch_size, raise --mesh.fsdp or --train.accumulation_steps, or set --model.remat true"


def compile_recipe(
    recipe: Recipe,
    topology_name: str,
    *,
    num_slices: int,
    text_length: int | None,
    cached_tokens: bool = False,
    hbm_limit: float | None = None,
) -> Figures:
    """Compiles the train step of a recipe for TPU slices.

    Args:
      recipe: its model and its training are used.
      topology_name: of one slice, such as "v5e:16x16".
      num_slices: slices of that kind, connected by the data-centre network.
      text_length: tokens of a caption; None for the default (`text_length_of`).
      cached_tokens: whether the batch holds the ViT's tokens of the frames in place of the frames.
      hbm_limit: bytes of memory of a device; by default the chip's.

    Returns:
      Figures for JSON: "topology", "mesh", "compile_seconds", "parameters", "held_whole" (arrays of the state),
      "memory", "flops", "collectives", "largest" (collectives and arrays), "roofline" and "input" (what hosts read).

    Raises:
      STGTError: the slice is unknown, the mesh or the batch does not fit it, or the compiler runs out of memory.
    """
    text_length = text_length_of(recipe, text_length)
    topology = find_topology(topology_name, num_slices)
    model, any_mesh = STGT(recipe.model), make_mesh(MeshConfig(), topology.devices)
    with jax.sharding.use_abstract_mesh(any_mesh.abstract_mesh):  # else the host's kernels are chosen
        mesh = mesh_for(model, recipe.train, topology.devices, topology.device.hbm_bytes)
        train_step = cast(jax.stages.Wrapped, make_train_step(model, recipe.train, mesh))
        state = abstract_state(model, recipe.train, mesh)
    start = time.perf_counter()
    batch = abstract_batch(recipe, mesh, text_length, cached_tokens=cached_tokens)
    lowered = train_step.lower(state, batch)
    lower_seconds = time.perf_counter() - start
    compiled, text = _compile(lowered)
    seconds = time.perf_counter() - start
    module = parse_hlo(text)
    collectives = find_collectives(module, [slice_of(device) for device in mesh.devices.flat])
    model_flops = sum(step_flops(recipe, text_length, cached_tokens=cached_tokens).values())
    flops = {"program": program_flops(module), "model": model_flops / mesh.size}
    roofline = _roofline(recipe, topology, flops, hbm_bytes(module), collectives)
    return {
        "topology": topology.to_dict(),
        "jax": jax.__version__,
        "mesh": dict(mesh.shape),
        "batch_size": recipe.train.batch_size,
        "lower_seconds": lower_seconds,
        "compile_seconds": seconds - lower_seconds,
        "parameters": {"trainable": _count(state.params), "frozen": _count(state.frozen)},
        "held_whole": _held_whole(state, compiled, mesh),
        "memory": _memory(compiled, topology.device.hbm_bytes if hbm_limit is None else hbm_limit),
        "flops": flops | {"ratio": flops["program"] / flops["model"], "loops_of_unknown_length": module.unknown_loops},
        "collectives": _totals(collectives),
        "largest": {
            "collectives": [asdict(collective) for collective in collectives[:NUM_LARGEST]],
            "arrays": _largest_arrays(module),
        },
        "roofline": roofline,
        "input": _input(batch, roofline["seconds"], mesh),
    }


def abstract_batch(
    recipe: Recipe, mesh: Mesh, text_length: int, *, cached_tokens: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and the layout of a global batch, as `shard_batch` lays it out."""
    clips = recipe.train.batch_size
    shapes = {
        "video": video_shape(recipe, clips, cached_tokens=cached_tokens),
        "input_ids": ((clips, text_length), jnp.int32),
        "attention_mask": ((clips, text_length), jnp.int32),
    }
    layout = batch_layout(mesh)
    return {name: jax.ShapeDtypeStruct(*shape, sharding=layout[name]) for name, shape in shapes.items()}


def _compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
    """Returns the program and its text."""
    with tempfile.TemporaryDirectory() as folder:
        dump: dict[str, str | bool] = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            compiled = lowered.compile(compiler_options=dump)
        except jax.errors.JaxRuntimeError as error:
            raise STGTError(refusal(str(error))) from error
        try:
            return compiled, compiled.as_text() or ""
        except jax.errors.JaxRuntimeError:  # jaxlib 0.10 cannot parse every program for tpu7x
            (file,) = pathlib.Path(folder).glob("*.after_optimizations.txt")
            return compiled, file.read_text()


def refusal(message: str) -> str:
    """Returns the TPU compiler's error message on one line."""
    forms = (r"Used ([\d.]+\w?) of ([\d.]+\w?) hbm", r"\(([\d.]+\w?)\) exceeds available HBM \(([\d.]+\w?)\)")
    used = next(filter(None, (re.search(form, message) for form in forms)), None)
    if not used:
        return f"the TPU's compiler refuses the step: {message.splitlines()[0]}"
    largest = re.search(r"Size: ([\d.]+\w?)\n(?:\s+Operator: op_name=\"([^\"]*)\".*\n)?\s+Shape: (\S+)", message)
    hint = f"; its largest array is {largest[3].partition('{')[0]} of {largest[1]}" if largest else ""
    source = f" ({shorten(largest[2], 80)})" if largest and largest[2] else ""
    return f"does not fit: the step needs {used[1]} of the {used[2]} of memory of a device{hint}{source}; {ADVICE}"


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _held_whole(state: Any, compiled: jax.stages.Compiled, mesh: Mesh) -> list[Figures]:
    """Returns the arrays of the state that are replicated on a mesh with an fsdp or tensor axis, the largest first."""
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return []
    ((shardings, _), _) = compiled.input_shardings
    found = [
        {"name": jax.tree_util.keystr(path, simple=True, separator="/"), "bytes": leaf.size * leaf.dtype.itemsize}
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(shardings), strict=True
        )
        if sharding.is_fully_replicated
    ]
    return sorted(found, key=lambda one: -one["bytes"])


def _memory(compiled: jax.stages.Compiled, limit: float) -> Figures:
    sizes = program_memory(compiled)
    total = total_memory(sizes)
    return sizes | {"total": total, "limit": limit, "fits": total <= limit}


def _totals(collectives: Iterable[Collective]) -> list[Figures]:
    """Adds up the collectives of each kind and link."""
    totals: dict[tuple[str, str], Figures] = {}
    for one in collectives:
        empty = {"kind": one.kind, "link": one.link, "times": 0, "sent_bytes": 0.0}
        total = totals.setdefault((one.kind, one.link), empty)
        total["times"] += one.times
        total["sent_bytes"] += one.sent_bytes
    return list(totals.values())


def _largest_arrays(module: Module) -> list[Figures]:
    """Returns the largest results in HBM, each shape and source once."""
    found = {
        (str(array), instruction.source): array.bytes
        for computation, instruction, _ in module.runs()
        if computation.name not in module.fused and instruction.opcode not in ("parameter", "get-tuple-element")
        for array in instruction.arrays
        if array.in_hbm and not instruction.shape.startswith("(")
    }
    largest = sorted(found.items(), key=lambda item: -item[1])[:NUM_LARGEST]
    return [{"shape": shape, "source": source, "bytes": size} for (shape, source), size in largest]


def _input(batch: dict[str, jax.ShapeDtypeStruct], seconds: float, mesh: Mesh) -> Figures:
    """Returns the bytes of a clip, and how many a second the hosts must read for each device at the bound's speed."""
    video = batch["video"]
    num_bytes = video.size * video.dtype.itemsize
    return {"bytes_per_clip": num_bytes / video.shape[0], "bytes_per_second": num_bytes / mesh.size / seconds}


def _roofline(
    recipe: Recipe, topology: Topology, flops: Figures, memory_bytes: int, collectives: Iterable[Collective]
) -> Figures:
    """Returns the lower bounds of the step time from FLOPs, HBM and ICI, and the largest of them.

    The network between slices gives no bound: there is no published bandwidth for all chips.
    """
    device = topology.device
    sent = {link: sum(one.sent_bytes for one in collectives if one.link == link) for link in (ICI, DCN)}
    bounds = {
        "flops": flops["program"] / device.flops_per_second,
        "memory": memory_bytes / device.hbm_bytes_per_second,
        "ICI": sent[ICI] / device.ici_bytes_per_second,
    }
    seconds = max(bounds.values())
    return {
        "hbm_bytes": memory_bytes,
        "ici_bytes": sent[ICI],
        "dcn_bytes": sent[DCN],
        "bounds_seconds": bounds,
        "seconds": seconds,
        "videos_per_second": recipe.train.batch_size / seconds,
        "model_flops_share": flops["model"] / seconds / device.flops_per_second,
    }
