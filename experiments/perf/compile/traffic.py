"""Bytes that a compiled program moves between a device and its memory, counted from its text.

Each operation reads its operands and writes its results once, and what happens within a fusion stays on the core: less
no program can move, though one whose tiles come in again moves more. Of an operand that is only cut into, such as the
stacked parameters of a loop over layers, the cut alone counts.
"""

import re

from experiments.perf.compile.collectives import KINDS
from experiments.perf.compile.hlo import Array, Computation, Instruction, Module

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all",
    "partition-id", "replica-id", "opt-barrier", "optimization-barrier", "async-start", "iota", "domain",
}  # fmt: skip
_CUTS = ("dynamic-slice", "slice", "gather")


def hbm_bytes(module: Module) -> int:
    """Bytes read and written in one run, loops counted as often as they run."""
    return sum(
        times * _instruction_bytes(module, computation, instruction)
        for computation, instruction, times in module.runs()
        if computation.name not in module.fused
    )


def _instruction_bytes(module: Module, computation: Computation, instruction: Instruction) -> int:
    if instruction.opcode in _FREE or instruction.opcode.endswith(("-done", "-update")):
        return 0
    operands = computation.operands(instruction)
    if instruction.opcode in _CUTS:
        return 2 * _in_hbm(instruction.arrays)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _in_hbm(operands[1].arrays)
    if instruction.opcode == "fusion":
        return _fusion_bytes(module, module.body(instruction), instruction, operands)
    if instruction.opcode.endswith("-start"):  # its result names the operands again, beside what it gives
        return 2 * sum(_in_hbm(operand.arrays) for operand in operands)
    return _in_hbm(instruction.arrays) + sum(_in_hbm(operand.arrays) for operand in operands)


def _in_hbm(arrays: tuple[Array, ...]) -> int:
    return sum(array.bytes for array in arrays if array.in_hbm)


def _fusion_bytes(module: Module, body: Computation, instruction: Instruction, operands: list[Instruction]) -> int:
    parameters = [i for i in body.instructions.values() if i.opcode == "parameter"]
    by_index = {int(i.attributes[1 : i.attributes.index(")")]): i for i in parameters}
    waits_for = _passed_through(instruction) if _has_collective(module, body) else {}
    read = sum(
        min(_in_hbm(operand.arrays), _read(module, body, by_index[index]))
        for index, operand in enumerate(operands)
        if index in by_index and index not in waits_for.values()
    )
    if waits_for:
        return read + _in_hbm(tuple(a for i, a in enumerate(instruction.arrays) if i not in waits_for))
    return read + min(_in_hbm(instruction.arrays), _written(module, body, body.root))


def _has_collective(module: Module, body: Computation) -> bool:
    return any(
        i.kind in KINDS or (i.opcode == "fusion" and _has_collective(module, module.body(i)))
        for i in body.instructions.values()
    )


def _passed_through(instruction: Instruction) -> dict[int, int]:
    """Of a fusion that works while a collective is under way: the results, by number, that are operands of it.

    `output_to_operand_aliasing={{1}: (0, {}), {}: (2, {})}` -> `{1: 0, 0: 2}`.
    """
    found = re.search(r"output_to_operand_aliasing=\{((?:\{\d*\}: \(\d+, \{\}\)(?:, )?)*)\}", instruction.attributes)
    pairs = re.findall(r"\{(\d*)\}: \((\d+),", found[1]) if found else []
    return {int(result or 0): int(operand) for result, operand in pairs}


def _read(module: Module, body: Computation, value: Instruction) -> int:
    """What a fusion needs of a parameter, or of a view of one: all of it, or the parts that it cuts out."""
    total = 0
    for user in body.users[value.name]:
        position = user.operands.index(value.name)
        if user.opcode in _CUTS and position == 0:
            total += user.bytes
        elif user.opcode == "dynamic-update-slice" and position == 0:
            pass  # written in place
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
    """What a fusion writes: its result, or where that takes an operand's place the part that changes."""
    if root.opcode == "tuple":
        return sum(_written(module, body, value) for value in body.operands(root))
    if root.opcode == "dynamic-update-slice":
        return body.operands(root)[1].bytes
    if root.opcode == "bitcast" and body.operands(root):
        return _written(module, body, body.operands(root)[0])
    if root.opcode == "fusion":
        return _written(module, module.body(root), module.body(root).root)
    return root.bytes
