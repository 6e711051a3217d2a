"""Counts the FLOPs of a compiled program on one device.

Matrix products and convolutions count 2 FLOPs for each multiply-add, Pallas kernels their own cost estimate.
Element-wise operations do not count. `stgt_jax.flops` follows the same rules, so the two can be compared.
"""

import math
import re

import numpy as np

from experiments.perf.compile.hlo import Computation, Instruction, Module

_KERNEL_FLOPS = re.compile(r'"cost_estimate":\{[^}]*"flops":"?(\d+)')


def program_flops(module: Module) -> int:
    """Returns the FLOPs of one run of a program; the body of a loop counts in every iteration."""
    return sum(times * instruction_flops(computation, instruction) for computation, instruction, times in module.runs())


def instruction_flops(computation: Computation, instruction: Instruction) -> int:
    """Returns the FLOPs of an instruction without those of the computations that it calls."""
    if instruction.opcode == "dot":
        return _dot(computation, instruction)
    if instruction.opcode == "convolution":
        return _convolution(computation, instruction)
    if instruction.opcode == "custom-call" and (found := _KERNEL_FLOPS.search(instruction.attributes)):
        return int(found[1])
    return 0


def _dot(computation: Computation, instruction: Instruction) -> int:
    left = computation.operands(instruction)[0].arrays[0].dims
    contracted = _numbers(instruction, "lhs_contracting_dims")
    return 2 * math.prod(instruction.arrays[0].dims) * math.prod(left[i] for i in contracted)


def _convolution(computation: Computation, instruction: Instruction) -> int:
    """On TPUs every matrix product is a convolution. Products with padding, as in batched ones, do not count."""
    left, kernel = (operand.arrays[0].dims for operand in computation.operands(instruction)[:2])
    out = instruction.arrays[0].dims
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert found, f"a convolution without dim_labels: {instruction.name}"
    left_labels, kernel_labels, out_labels = found.groups()
    windows = 1
    for label in filter(str.isdigit, out_labels):
        sizes = left[left_labels.index(label)], kernel[kernel_labels.index(label)], out[out_labels.index(label)]
        windows *= _products(instruction, int(label), *sizes)
    features = out[out_labels.index("f")] * kernel[kernel_labels.index("i")]
    batch = left[left_labels.index("b")] // _attribute(instruction, "batch_group_count")
    return 2 * windows * features * batch


def _products(instruction: Instruction, dim: int, left: int, kernel: int, out: int) -> int:
    """Counts the products of kernel and input elements along a spatial dimension, without those of the padding."""
    stride, dilation, spread = (
        int(_window(instruction, word, dim, "1")) for word in ("stride", "rhs_dilate", "lhs_dilate")
    )
    padding = int(_window(instruction, "pad", dim, "0_0").split("_")[0])
    at = np.arange(out)[:, None] * stride + np.arange(kernel)[None] * dilation - padding
    return int(((at >= 0) & (at % spread == 0) & (at // spread < left)).sum())


def _window(instruction: Instruction, word: str, dim: int, default: str) -> str:
    """Returns the value for one dimension of `window={size=1x2 pad=0_0x1_1 ...}`."""
    found = re.search(rf"\bwindow=\{{[^}}]*\b{word}=([\w\-]+)", instruction.attributes)
    return found[1].split("x")[dim] if found else default


def _attribute(instruction: Instruction, name: str) -> int:
    found = re.search(rf"\b{name}=(\d+)", instruction.attributes)
    return int(found[1]) if found else 1


def _numbers(instruction: Instruction, name: str) -> list[int]:
    found = re.search(rf"\b{name}=\{{([\d,]*)\}}", instruction.attributes)
    return [int(number) for number in found[1].split(",") if number] if found else []
