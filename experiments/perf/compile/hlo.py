"""Parses the text of an optimised XLA program (HLO) and tells how often each instruction runs.

XLA's `cost_analysis` counts the body of a loop once; the text also gives the trip count. The program is already
partitioned (SPMD), so its shapes are those of one device.
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
# Attributes that name a computation which the instruction runs. The scalar functions of reductions and sorts
# (`to_apply`, `comparator`) contain no matrix products and are ignored; only the `to_apply` of a call counts.
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
# Custom calls have such a list too: on tpu7x they run collectives on the sparse cores.
_SEVERAL_CALLED = re.compile(r"\b(?:branch|called)_computations=\{([^}]*)\}")


@dataclass(frozen=True)
class Array:
    """An array, or one element of a tuple."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool = True  # False: in on-chip memory

    @property
    def bytes(self) -> int:
        """Size without padding."""
        bits = 8 if self.dtype == "pred" else int((re.search(r"\d+", self.dtype) or "0")[0])
        return math.prod(self.dims) * bits // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Instruction:
    """One line of the program's text."""

    name: str
    opcode: str
    shape: str  # as text
    operands: tuple[str, ...]  # names
    attributes: str  # the text after the operands; for parameters and constants, which have none, after the opcode
    is_root: bool = False

    @cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The result: one array, or the elements of a tuple."""
        return tuple(
            Array(dtype, tuple(map(int, re.findall(r"\d+", dims))), not re.search(r"S\([1-9]", layout))
            for dtype, dims, layout in _ARRAY.findall(self.shape)
        )

    @property
    def bytes(self) -> int:
        """Size of the result."""
        return sum(array.bytes for array in self.arrays)

    @property
    def kind(self) -> str:
        """The opcode; an asynchronous start counts as the operation that it starts."""
        return self.opcode.removesuffix("-start")

    @property
    def source(self) -> str:
        """The JAX operation that it comes from, or the empty string."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def called(self) -> list[str]:
        """Names of the computations that it runs."""
        if self.opcode in ("async-update", "async-done", "call-update", "call-done"):
            return []  # counted at the matching start
        words = _CALLED.findall(self.attributes)
        names = [name for word, name in words if word != "to_apply" or self.kind == "call"]
        for several in _SEVERAL_CALLED.findall(self.attributes):
            names += [name.strip().removeprefix("%") for name in several.split(",")]
        return names


@dataclass
class Computation:
    """A named computation: its instructions by name, in order."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The instructions that compute the operands."""
        return [self.instructions[name] for name in instruction.operands if name in self.instructions]

    @cached_property
    def root(self) -> Instruction:
        """The instruction whose result the computation returns."""
        return next(i for i in reversed(self.instructions.values()) if i.is_root)

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """For each name, the instructions that use the result."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in instruction.operands:
                users.setdefault(operand, []).append(instruction)
        return users


@dataclass(frozen=True)
class Module:
    """A program. Every computation comes after those it calls; the entry computation is the last."""

    computations: dict[str, Computation]
    num_partitions: int

    @cached_property
    def times(self) -> dict[str, int]:
        """How often each computation runs, including all loops. Every branch of a conditional counts as taken."""
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
        """Names of the computations inside fusions. Their intermediate results never reach HBM."""
        fused: set[str] = set()
        for name in reversed(self.computations):
            for instruction in self.computations[name].instructions.values():
                if name in fused or instruction.opcode == "fusion":
                    fused.update(instruction.called)
        return fused

    @property
    def unknown_loops(self) -> int:
        """Number of loops with an unknown trip count. Their bodies count once."""
        return sum(self._trips(instruction) is None for _, instruction, _ in self.runs())

    def body(self, fusion: Instruction) -> Computation:
        """The computation of a fusion."""
        return self.computations[fusion.called[0]]

    def _trips(self, instruction: Instruction) -> int | None:
        """The trip count of a loop, None if it is unknown; 1 for every other instruction.

        Programs for CPUs state it. In those for TPUs it is the constant in the loop's condition `i < length`, as JAX's
        loops count from 0.
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
        """Yields every instruction that runs, with its computation and the number of times."""
        for name, computation in self.computations.items():
            if times := self.times[name]:
                for instruction in computation.instructions.values():
                    yield computation, instruction, times


def parse_hlo(text: str) -> Module:
    """Parses the text that `compiled.as_text()` returns."""
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
    # The shape of a tuple is in brackets and contains spaces; that of an array contains none.
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
    """Returns the index of the bracket that closes the one at `start`."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return start + found.start()
    return len(text) - 1
