"""Counts the bytes that a compiled program moves between a device and its HBM.

Each operation reads its operands and writes its results once; values inside a fusion stay on the chip. This is a lower
bound: a program that reads a tile more than once moves more. If an operation reads only a slice of an operand, such as
one layer of the stacked parameters, only the slice counts.
"""

import re

from experiments.perf.compile.collectives import KINDS
from experiments.perf.compile.hlo import Array, Computation, Instruction, Module

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all",
    "partition-id", "replica-id", "opt-barrier", "optimization-barrier", "async-start", "call-start", "iota", "domain",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")


def hbm_bytes(module: Module) -> int:
    """Returns the bytes read and written in one run; the body of a loop counts in every iteration."""
    return sum(
        times * _instruction_bytes(module, computation, instruction)
        for computation, instruction, times in module.runs()
        if computation.name not in module.fused
    )


def _instruction_bytes(module: Module, computation: Computation, instruction: Instruction) -> int:
    if instruction.opcode in _FREE or instruction.opcode.endswith(("-done", "-update")):
        return 0
    operands = computation.operands(instruction)
    if instruction.opcode in _SLICES:
        return 2 * _in_hbm(instruction.arrays)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _in_hbm(operands[1].arrays)
    if instruction.opcode == "fusion":
        return _fusion_bytes(module, module.body(instruction), instruction, operands)
    if instruction.opcode in ("copy-start", "slice-start"):
        return _transfer_bytes(instruction, operands[0])
    if instruction.opcode.endswith("-start"):  # its result repeats the operands
        return 2 * sum(_in_hbm(operand.arrays) for operand in operands)
    return _in_hbm(instruction.arrays) + sum(_in_hbm(operand.arrays) for operand in operands)


def _in_hbm(arrays: tuple[Array, ...]) -> int:
    return sum(array.bytes for array in arrays if array.in_hbm)


def _transfer_bytes(instruction: Instruction, source: Instruction) -> int:
    """Returns the bytes of a copy that runs beside other operations, often from HBM to on-chip memory or back.

    A `copy-start` returns (copy, source, state), a `slice-start` ((source), slice, state).
    """
    copied = instruction.arrays[0 if instruction.opcode == "copy-start" else 1]
    return copied.bytes * (source.arrays[0].in_hbm + copied.in_hbm)


def _fusion_bytes(module: Module, body: Computation, instruction: Instruction, operands: list[Instruction]) -> int:
    parameters = [i for i in body.instructions.values() if i.opcode == "parameter"]
    by_index = {int(i.attributes[1 : i.attributes.index(")")]): i for i in parameters}
    aliases = _aliases(instruction) if _has_collective(module, body) else {}
    read = sum(
        min(_in_hbm(operand.arrays), _read(module, body, by_index[index]))
        for index, operand in enumerate(operands)
        if index in by_index and index not in aliases.values()
    )
    if aliases:  # buffers of a collective that overlaps with the fusion, which only hands them on
        return read + _in_hbm(tuple(a for i, a in enumerate(instruction.arrays) if i not in aliases))
    return read + min(_in_hbm(instruction.arrays), _written(module, body, body.root))


def _has_collective(module: Module, body: Computation) -> bool:
    return any(
        i.kind in KINDS or (i.opcode == "fusion" and _has_collective(module, module.body(i)))
        for i in body.instructions.values()
    )


def _aliases(instruction: Instruction) -> dict[int, int]:
    """Parses `output_to_operand_aliasing={{1}: (0, {}), {}: (2, {})}` to {output: operand}, `{1: 0, 0: 2}`."""
    found = re.search(r"output_to_operand_aliasing=\{((?:\{\d*\}: \(\d+, \{\}\)(?:, )?)*)\}", instruction.attributes)
    pairs = re.findall(r"\{(\d*)\}: \((\d+),", found[1]) if found else []
    return {int(result or 0): int(operand) for result, operand in pairs}


def _read(module: Module, body: Computation, value: Instruction) -> int:
    """Returns the bytes that a fusion reads of a parameter, or of a bitcast of one: all, or the slices it takes."""
    total = 0
    for user in body.users[value.name]:
        position = user.operands.index(value.name)
        if user.opcode in _SLICES and position == 0:
            total += user.bytes
        elif user.opcode == "dynamic-update-slice" and position == 0:
            pass  # updated in place
        elif user.opcode == "bitcast":
            total += _read(module, body, user)
        elif user.opcode == "fusion":
            inner = module.body(user)
            parameters = (i for i in inner.instructions.values() if i.opcode == "parameter")
            total += sum(_read(module, inner, i) for i in parameters if i.attributes.startswith(f"({position})"))
        else:
            return value.bytes
    return min(total, value.bytes)


def _written(module: Module, body: Computation, root: Instruction) -> int:
    """Returns the bytes that a fusion writes: its result, or the updated slice if it updates an operand in place."""
    if root.opcode == "tuple":
        return sum(_written(module, body, value) for value in body.operands(root))
    if root.opcode == "dynamic-update-slice":
        return body.operands(root)[1].bytes
    if root.opcode == "bitcast" and body.operands(root):
        return _written(module, body, body.operands(root)[0])
    if root.opcode == "fusion":
        return _written(module, module.body(root), module.body(root).root)
    return root.bytes
