"""Finds the collectives of a compiled program and the bytes that each device sends for them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.perf.compile.hlo import Computation, Instruction, Module

ICI, DCN = "ICI", "DCN"
# Bytes that each of n devices sends for an operand of one byte in a ring algorithm, which sends the least possible.
_SENT = {
    "all-gather": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
KINDS = tuple(_SENT)
# Marks a transfer between TPU slices over the hosts: the part of a collective that crosses slices.
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_TRANSFERS = {kind.replace("-", "_").upper(): kind for kind in KINDS} | {"ONE_TO_ONE": "collective-permute"}
_SCATTERED = "all-reduce-scatter"  # the TPU compiler's name for a reduce-scatter


@dataclass(frozen=True)
class Collective:
    """A collective instruction, summed over all the times that it runs in a step."""

    kind: str
    link: str  # DCN if a group spans slices, else ICI
    group_size: int
    shape: str  # of one device's operand
    source: str  # the JAX operation
    times: int  # runs in a step
    sent_bytes: float  # by each device in a step


def find_collectives(module: Module, slices: Sequence[int]) -> list[Collective]:
    """Finds all collectives, the largest first; `slices` holds the slice of each device in the order of the mesh."""
    found = {}
    for computation, instruction, times in module.runs():
        one = None
        if instruction.kind in KINDS:
            one = _collective(module, computation, instruction, times, slices)
        elif instruction.opcode == "send" and (transfer := _BETWEEN_SLICES.search(instruction.attributes)):
            one = _counted(_TRANSFERS[transfer[1]], DCN, len(set(slices)), computation, instruction, times)
        if one:
            found[_identity(computation, instruction)] = one
    return sorted(found.values(), key=lambda collective: -collective.sent_bytes)


def _identity(computation: Computation, instruction: Instruction) -> str:
    """Returns a key that tells collectives apart.

    The TPU compiler repeats an asynchronous collective in each fusion that overlaps with it; their channel is the same.
    """
    channel = re.search(r"\bchannel_id=\d+", instruction.attributes)
    under_way = "async_collective_fusion_config" in instruction.attributes
    return channel[0] if channel and under_way else f"{computation.name}/{instruction.name}"


def _collective(
    module: Module, computation: Computation, instruction: Instruction, times: int, slices: Sequence[int]
) -> Collective:
    scattered = instruction.kind == "all-reduce" and computation.name.startswith(_SCATTERED)
    kind = "reduce-scatter" if scattered else instruction.kind
    groups = device_groups(instruction.attributes, module.num_partitions)
    spans = any(len({slices[device] for device in group}) > 1 for group in groups)
    return _counted(kind, DCN if spans else ICI, len(groups[0]), computation, instruction, times)


def _counted(
    kind: str, link: str, size: int, computation: Computation, instruction: Instruction, times: int
) -> Collective:
    arrays = [array for operand in computation.operands(instruction) for array in operand.arrays if array.bytes]
    sent = _SENT[kind](size) * sum(array.bytes for array in arrays) if size > 1 else 0
    return Collective(kind, link, size, " ".join(map(str, arrays)), instruction.source, times, times * sent)


def device_groups(attributes: str, num_devices: int) -> list[list[int]]:
    """Parses the groups of devices in `replica_groups=` or `source_target_pairs=`.

    The forms are a list, `{{0,1},{2,3}}`; an iota of the devices that is transposed and reshaped, `[2,2]<=[4]` or
    `[2,2]<=[2,2]T(1,0)`; axes of a mesh, `mesh['a'=2,'b'=2] {'b'}`. Anything else, such as `{}`, is one group of all.
    """
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", attributes):
        return [[int(device) for device in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", found[1])]
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape, source = (tuple(map(int, text.split(","))) for text in found.groups()[:2])
        devices = np.arange(np.prod(source)).reshape(source)
        if found[3]:
            devices = devices.transpose(tuple(map(int, found[3].split(","))))
        return devices.reshape(shape).tolist()
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^ ]*)\))? \{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        within = re.findall(r"'(\w+)'", found[3])
        order = [*(name for name in sizes if name not in within), *within]
        devices = _transposed(found[2], num_devices).reshape(list(sizes.values()))
        devices = devices.transpose([list(sizes).index(name) for name in order])
        return devices.reshape(-1, math.prod(sizes[name] for name in within)).tolist()
    if re.search(r"replica_groups=(?!\{\})", attributes):
        raise ValueError(f"replica_groups of an unknown form: {attributes[:200]}")
    return [list(range(num_devices))]


def _transposed(text: str | None, num_devices: int) -> np.ndarray:
    """Parses `[4,4]T(1,0)`: the devices in that shape, transposed; without text as they are."""
    devices = np.arange(num_devices)
    if not text:
        return devices
    found = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not found:
        raise ValueError(f"device_ids of an unknown form: {text}")
    devices = devices.reshape(tuple(map(int, found[1].split(","))))
    return devices.transpose(tuple(map(int, found[2].split(",")))) if found[2] else devices
