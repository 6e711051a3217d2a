"""Whether a training fits into the memory of devices and host, found out before it starts.

A step needs what its compiled program needs. The host also holds the copy of the state that is being written as a
checkpoint, and the batches that wait. The weights of the start, validation and the program itself are not counted.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from stgt_jax.config import MeshConfig, ModelConfig, TrainConfig
from stgt_jax.errors import STGTError
from stgt_jax.mesh import memory_of_a_device
from stgt_jax.models.stgt import STGT
from stgt_jax.sharding import batch_layout
from stgt_jax.train.out_of_memory import is_out_of_memory
from stgt_jax.train.state import TrainState, abstract_state, mesh_for
from stgt_jax.train.step import Metrics, make_train_step

GIB, MIB = 2**30, 2**20
MIN_CLIPS = 2  # at a time, for the contrastive losses
NUM_OPTIONS = 3  # that a refusal offers
WORTH_SAYING = 0.1  # share of the host's memory that fewer waiting batches must save
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
Shapes = Mapping[str, tuple[tuple[int, ...], Any]]  # of arrays: shape and dtype by name


@dataclasses.dataclass(frozen=True)
class HeldBatches:
    """The batches of a process, or its part of them, in the host's memory."""

    shapes: Shapes
    number: int  # at a time
    fewest: int  # with `data.num_workers` 0

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return self.number * sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.shapes.values())


@dataclasses.dataclass(frozen=True)
class Plan:
    """A training, and the batches that wait for it."""

    model: ModelConfig
    train: TrainConfig
    batches: HeldBatches

    def of_clips(self, clips: int) -> "Plan":
        """The same with another number of clips in a batch."""
        share = clips / self.train.batch_size
        shapes = {
            name: ((int(shape[0] * share), *shape[1:]), dtype) for name, (shape, dtype) in self.batches.shapes.items()
        }
        train = dataclasses.replace(self.train, batch_size=clips)
        return dataclasses.replace(self, train=train, batches=dataclasses.replace(self.batches, shapes=shapes))


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bytes of memory; None where it is not known."""

    device: float | None
    host: float | None


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes that a plan needs: on each device for state, batch and what a step computes, and on the host."""

    arguments: int
    working: float  # infinite where the compiler finds that the device is too small
    host: float

    @property
    def device(self) -> float:
        """In all, on each device."""
        return self.arguments + self.working

    def excess(self, limits: Limits) -> float:
        """The need as a share of what there is, of the scarcer memory; over 1 it does not fit."""
        pairs = ((self.device, limits.device), (self.host, limits.host))
        return max((need / limit for need, limit in pairs if limit), default=0.0)


def fitting_train_step(
    model: STGT, config: TrainConfig, mesh: Mesh, batches: HeldBatches, limits: Limits | None = None
) -> TrainStep:
    """Compiles the train step, and checks that devices and host have the memory for it.

    Args:
      model: the model.
      config: of the training.
      mesh: to train on.
      batches: this process's part of them.
      limits: memory there is; by default what devices and host report. CPUs are limited by the host's alone.

    Returns:
      The step of `make_train_step`, compiled for these shapes.

    Raises:
      STGTError: it does not fit; the message gives the need, and options with which it is less.
    """
    limits = limits or Limits(memory_of_a_device(mesh.devices.flat), host_memory())
    plan = Plan(model.config, config, batches)
    compiled, need = _compiled(plan, mesh)
    if compiled is None or need.excess(limits) > 1:
        raise STGTError(_refusal(plan, need, limits, mesh))
    return compiled


def program_memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes on each device that a program needs, by purpose. Outputs in place take no memory of their own."""
    stats = compiled.memory_analysis()
    assert stats is not None, "this platform's compiler has no memory analysis"
    return {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "outputs_in_place": stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }


def total_memory(sizes: Mapping[str, int]) -> int:
    """The sum of what `program_memory` returns, bytes."""
    return sum(sizes.values()) - 2 * sizes["outputs_in_place"]


def host_memory() -> int | None:
    """Bytes that programs may use here: memory and swap space, or the container's limit if that is less."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}
        found = [sizes["MemTotal"] + sizes["SwapTotal"]]
    except (OSError, KeyError, ValueError, IndexError):  # not Linux
        if "SC_PHYS_PAGES" not in os.sysconf_names:
            return None
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in map(Path, _CGROUP_LIMITS):
        if file.exists() and (text := file.read_text().strip()).isdecimal():
            found.append(int(text))
    return min(found)


def _compiled(plan: Plan, mesh: Mesh) -> tuple[TrainStep | None, Need]:
    """Returns the compiled step, or None where the compiler finds no way to fit it in, and what it needs."""
    model = STGT(plan.model)
    state = abstract_state(model, plan.train, mesh)
    shapes, ways = plan.batches.shapes, jax.process_count()
    layout = batch_layout(mesh, answers="answer" in shapes)
    batch = {
        name: jax.ShapeDtypeStruct((shape[0] * ways, *shape[1:]), dtype, sharding=layout[name])
        for name, (shape, dtype) in shapes.items()
    }
    own = {device for device in mesh.devices.flat if device.process_index == jax.process_index()}
    saved = sum(_bytes_of_process(leaf, own) for leaf in jax.tree.leaves(state))
    step = cast(jax.stages.Wrapped, make_train_step(model, plan.train, mesh))
    try:
        compiled = step.lower(state, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None, Need(0, math.inf, saved + plan.batches.bytes)
    sizes = program_memory(compiled)
    total = total_memory(sizes)
    host = saved + plan.batches.bytes + (total * len(own) if _is_host(mesh) else 0)
    return compiled, Need(sizes["arguments"], total - sizes["arguments"], host)


def _is_host(mesh: Mesh) -> bool:
    """Whether the devices are CPUs, which have no memory of their own."""
    return str(mesh.devices.flat[0].platform) == "cpu"


def _bytes_of_process(leaf: jax.ShapeDtypeStruct, own: set[jax.Device]) -> int:
    """Bytes of the different parts of an array that lie on the devices of this process."""
    parts = {
        tuple((part.start, part.stop) for part in index)
        for device, index in leaf.sharding.devices_indices_map(leaf.shape).items()
        if device in own
    }
    shard = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return len(parts) * shard


def _refusal(plan: Plan, need: Need, limits: Limits, mesh: Mesh) -> str:
    """Says what is needed, what is there, and how much less it would be with other options."""
    on_devices = limits.device and need.device > limits.device
    where, limit = ("each device", limits.device) if on_devices else ("the host", limits.host)

    def amount(need: Need) -> float:
        return need.device if on_devices else need.host

    options: list[str] = []
    fits = False
    for option, smaller, smaller_mesh in _smaller_plans(plan, need, limits, mesh):
        other = _compiled(smaller, smaller_mesh)[1]
        if amount(other) < amount(need):
            fits |= other.excess(limits) <= 1
            options.append(f"{option} ({_size(amount(other))})")
        if len(options) == NUM_OPTIONS:
            break
    has_state = on_devices or _is_host(mesh)
    of_state = f" ({_size(need.arguments)} for weights, optimizer and batch)" if need.arguments and has_state else ""
    alone = "" if fits or not options else ", but not one of these alone is enough,"
    return (
        f"this training does not fit: it needs {_size(amount(need))} on {where}{of_state}, and there are"
        f" {_size(limit or 0)}; it needs less{alone} with {', '.join(options) or 'a smaller model'}"
    )


def _size(size: float) -> str:
    if math.isinf(size):
        return "more than there is"
    return f"{size / GIB:,.2f} GiB" if size > 0.1 * GIB else f"{size / MIB:.2f} MiB"


def _smaller_plans(plan: Plan, need: Need, limits: Limits, mesh: Mesh) -> Iterator[tuple[str, Plan, Mesh]]:
    """Plans that need less memory, each with the option that makes it; those that train the same come first."""
    model, config = plan.model, plan.train
    fewest = dataclasses.replace(plan.batches, number=plan.batches.fewest)
    if plan.batches.bytes - fewest.bytes > WORTH_SAYING * need.host:
        yield "--data.num_workers 0", dataclasses.replace(plan, batches=fewest), mesh
    if not model.remat:
        yield "--model.remat true", dataclasses.replace(plan, model=dataclasses.replace(model, remat=True)), mesh
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    clips = config.batch_size // ways  # of a device
    most = min(clips, config.batch_size // MIN_CLIPS)
    parts = [n for n in range(config.accumulation_steps + 1, most + 1) if clips % n == 0]
    if parts:
        # Activations shrink with the microbatch; the sum of the gradients, which comes with parts, does not.
        steps = next((n for n in parts if _would_fit(need, limits, config.accumulation_steps / n)), parts[-1])
        smaller = dataclasses.replace(plan, train=dataclasses.replace(config, accumulation_steps=steps))
        yield f"--train.accumulation_steps {steps}", smaller, mesh
    if (whole := _split_more(plan, mesh)) is not None:
        split = dataclasses.replace(config, mesh=MeshConfig(**whole.shape))
        yield f"--train.mesh.fsdp {whole.shape['fsdp']}", dataclasses.replace(plan, train=split), whole
    quantum = ways * config.accumulation_steps
    sizes = range(config.batch_size - quantum, MIN_CLIPS * config.accumulation_steps - 1, -quantum)
    if sizes:
        size = next((n for n in sizes if _would_fit(need, limits, n / config.batch_size)), sizes[-1])
        yield f"--train.batch_size {size}", plan.of_clips(size), mesh


def _would_fit(need: Need, limits: Limits, share: float) -> bool:
    """Whether it fits, probably, if activations shrink to a share."""
    host = need.host - (1 - share) * (need.host - need.arguments)
    return Need(need.arguments, need.working * share, host).excess(limits) < 0.8


def _split_more(plan: Plan, mesh: Mesh) -> Mesh | None:
    """The mesh with all of `data` as `fsdp`; None where that is no other, or not possible."""
    if mesh.shape["data"] == 1:
        return None
    axes = MeshConfig(1, mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["sequence"], mesh.shape["tensor"])
    try:
        split = mesh_for(STGT(plan.model), dataclasses.replace(plan.train, mesh=axes), list(mesh.devices.flat))
    except STGTError:
        return None
    return split if dict(split.shape) != dict(mesh.shape) else None
