"""The text of an optimised XLA program (HLO) as computations of instructions, and how often each of them runs.

XLA's own `cost_analysis` counts the body of a loop once, however often it runs; the text says how often. Arrays are
those of one device: the text is that of the program after it was parted over the devices.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
# Words before the name of a computation that an instruction runs. Those of reductions and sorts (`to_apply`,
# `comparator`) run once for each element and multiply no matrices: only a call's `to_apply` counts.
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
# Also those of a custom call: so tpu7x hands collectives over to its sparse cores.
_SEVERAL_CALLED = re.compile(r"\b(?:branch|called)_computations=\{([^}]*)\}")


@dataclass(frozen=True)
class Array:
    """One array of a shape."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool = True  # False: in a memory on the core

    @property
    def bytes(self) -> int:
        """Without padding."""
        bits = 8 if self.dtype == "pred" else int((re.search(r"\d+", self.dtype) or "0")[0])
        return math.prod(self.dims) * bits // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Instruction:
    """One line."""

    name: str
    opcode: str
    shape: str  # as text
    operands: tuple[str, ...]  # names
    attributes: str  # what follows the operands; of a parameter and a constant, what stands for them too
    is_root: bool = False

    @cached_property
    def arrays(self) -> tuple[Array, ...]:
        """What it gives: one array, or those of a tuple."""
        return tuple(
            Array(dtype, tuple(map(int, re.findall(r"\d+", dims))), not re.search(r"S\([1-9]", layout))
            for dtype, dims, layout in _ARRAY.findall(self.shape)
        )

    @property
    def bytes(self) -> int:
        """Of all it gives."""
        return sum(array.bytes for array in self.arrays)

    @property
    def kind(self) -> str:
        """The opcode, the same for the synchronous form and the one that is started and awaited."""
        return self.opcode.removesuffix("-start")

    @property
    def source(self) -> str:
        """The operation of the traced program it comes from, or nothing."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def called(self) -> list[str]:
        """Names of the computations it runs."""
        if self.opcode in ("async-update", "async-done"):
            return []  # the start of what they wait for has named it
        words = _CALLED.findall(self.attributes)
        names = [name for word, name in words if word != "to_apply" or self.opcode == "call"]
        for several in _SEVERAL_CALLED.findall(self.attributes):
            names += [name.strip().removeprefix("%") for name in several.split(",")]
        return names


@dataclass
class Computation:
    """A named list of instructions."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The instructions that give its operands."""
        return [self.instructions[name] for name in instruction.operands if name in self.instructions]

    @cached_property
    def root(self) -> Instruction:
        """The one whose result is the computation's."""
        return next(i for i in reversed(self.instructions.values()) if i.is_root)

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """By name, the instructions that read what it gives."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in instruction.operands:
                users.setdefault(operand, []).append(instruction)
        return users


@dataclass(frozen=True)
class Module:
    """A program; its computations stand after those they call, the entry last."""

    computations: dict[str, Computation]
    num_partitions: int

    @cached_property
    def times(self) -> dict[str, int]:
        """How often each computation runs, loops multiplied; of a conditional each branch counts as taken."""
        times = dict.fromkeys(self.computations, 0)
        times[next(reversed(self.computations))] = 1
        for name in reversed(self.computations):
            for instruction in self.computations[name].instructions.values():
                trips = self._trips(instruction) or 1
                for called in instruction.called:
                    times[called] += times[name] * trips
        return times

    @cached_property
    def fused(self) -> set[str]:
        """Names of the computations within fusions, whose intermediate results never reach memory."""
        fused: set[str] = set()
        for name in reversed(self.computations):
            for instruction in self.computations[name].instructions.values():
                if name in fused or instruction.opcode == "fusion":
                    fused.update(instruction.called)
        return fused

    @property
    def unknown_loops(self) -> int:
        """Loops whose length the text does not tell; they count once."""
        return sum(self._trips(instruction) is None for _, instruction, _ in self.runs())

    def body(self, fusion: Instruction) -> Computation:
        """The computation of a fusion."""
        return self.computations[fusion.called[0]]

    def _trips(self, instruction: Instruction) -> int | None:
        """How often a loop runs, 1 for all that is no loop, None where nothing tells.

        CPUs' programs say it; those of TPUs end a loop that counts from 0, as all of JAX's do, with `i < length`.
        """
        if instruction.opcode != "while":
            return 1
        if found := _TRIP_COUNT.search(instruction.attributes):
            return int(found[1])
        condition = self.computations[dict(_CALLED.findall(instruction.attributes))["condition"]]
        if condition.root.opcode != "compare" or "direction=LT" not in condition.root.attributes:
            return None
        length = condition.operands(condition.root)[1]
        found = re.match(r"\((\d+)\)", length.attributes)
        return int(found[1]) if found and length.opcode == "constant" else None

    def runs(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Every instruction that runs, with its computation and how often."""
        for name, computation in self.computations.items():
            if times := self.times[name]:
                for instruction in computation.instructions.values():
                    yield computation, instruction, times


def parse_hlo(text: str) -> Module:
    """Reads `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    for line in text.splitlines():
        if line.startswith("HloModule"):
            continue
        if not line.startswith(" "):
            header = _HEADER.match(line)
            if header:
                current = computations[header[2]] = Computation(header[2])
        elif current is not None and (instruction := _parse_instruction(line)):
            current.instructions[instruction.name] = instruction
    partitions = re.search(r"\bnum_partitions=(\d+)", text.partition("\n")[0])
    return Module(computations, int(partitions[1]) if partitions else 1)


def _parse_instruction(line: str) -> Instruction | None:
    name, equals, rest = line.strip().partition(" = ")
    if not equals:
        return None
    # A tuple's shape has spaces, and ends with its bracket; an array's has none.
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    start = len(opcode)
    end = _closing(rest, start)
    operands = tuple(_NAME.findall(rest[start:end]))
    attributes = rest[end + 1 :] if operands else rest[start:]
    is_root = name.startswith("ROOT ")
    return Instruction(name.removeprefix("ROOT ").lstrip("%"), opcode, shape, operands, attributes, is_root)


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return start + found.start()
    return len(text) - 1
