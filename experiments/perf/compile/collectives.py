"""What a compiled program sends between devices: bytes that each device sends, by kind and by link."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.perf.compile.hlo import Computation, Instruction, Module

ICI, DCN = "ICI", "DCN"
# Bytes sent by each of n devices for an operand of one byte, passed round in a ring: the least there can be.
_SENT = {
    "all-gather": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
KINDS = tuple(_SENT)
# What TPUs send to other slices through their hosts, each slice's share of a collective over all of them.
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_TRANSFERS = {kind.replace("-", "_").upper(): kind for kind in KINDS} | {"ONE_TO_ONE": "collective-permute"}
_SCATTERED = "all-reduce-scatter"  # how TPUs name a fusion of an all-reduce of which each device keeps its part


@dataclass(frozen=True)
class Collective:
    """One collective of the program's text, over all the times it runs."""

    kind: str
    link: str  # DCN where a group spans slices, else ICI
    group_size: int
    shape: str  # of what one device gives
    source: str  # the operation of the traced program
    times: int  # a step
    sent_bytes: float  # by each device, a step


def find_collectives(module: Module, slices: Sequence[int]) -> list[Collective]:
    """Finds all collectives, the largest first.

    Args:
      module: a program.
      slices: for each device in the order of the mesh, the slice it belongs to.
    """
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
    """The same for all lines of one collective: TPUs write it anew in each fusion that works while it is under way."""
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
    """The devices that exchange with each other, of `replica_groups=` or `source_target_pairs=` in any of their forms.

    `{{0,1},{2,3}}` lists them; `[2,2]<=[4]` or `[2,2]<=[2,2]T(1,0)` counts the devices, transposes and cuts them;
    `mesh['a'=2,'b'=2] {'b'}` cuts a mesh of them along its axes; all else, as `{}`, is one group of all.
    """
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", attributes):
        return [[int(device) for device in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", found[1])]
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape, source = (tuple(map(int, text.split(","))) for text in found.groups()[:2])
        devices = np.arange(np.prod(source)).reshape(source)
        if found[3]:
            devices = devices.transpose(tuple(map(int, found[3].split(","))))
        return devices.reshape(shape).tolist()
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        within = re.findall(r"'(\w+)'", found[2])
        order = [*(name for name in sizes if name not in within), *within]
        devices = np.arange(num_devices).reshape(list(sizes.values())).transpose([list(sizes).index(n) for n in order])
        return devices.reshape(-1, math.prod(sizes[name] for name in within)).tolist()
    return [list(range(num_devices))]
