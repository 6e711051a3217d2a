"""The figures of `stgt compile` as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.perf.bench.table import format_table
from experiments.perf.compile.chips import GIB
from experiments.perf.compile.train_step import ADVICE

Figures = Mapping[str, Any]
_SOURCE_LENGTH = 100


def format_figures(figures: Figures) -> str:
    """The text of what `compile_recipe` returned."""
    flops, roofline = figures["flops"], figures["roofline"]
    sections = [
        _header(figures),
        _memory(figures["memory"]) + _held_whole(figures["held_whole"]),
        f"GFLOP a device and step: {flops['program'] / 1e9:,.1f} in the program, {flops['model'] / 1e9:,.1f} the"
        f" model's own; ratio {flops['ratio']:.2f}{_unknown_loops(flops)}",
        _collectives(figures),
        _largest(figures["largest"]),
        _roofline(roofline),
    ]
    return "\n\n".join(section for section in sections if section)


def _header(figures: Figures) -> str:
    topology, parameters = figures["topology"], figures["parameters"]
    cores = topology["num_devices"] // topology["num_chips"]
    mesh = ", ".join(f"{axis} {size}" for axis, size in figures["mesh"].items())
    return "\n".join(
        [
            f"{topology['name']} x {topology['num_slices']}: {topology['num_chips']} chips"
            + (f" of {cores} devices" if cores > 1 else "")
            + f", jax {figures['jax']}; mesh: {mesh}; {figures['batch_size']} clips a step",
            f"parameters: {parameters['trainable'] / 1e6:,.1f} M trainable, {parameters['frozen'] / 1e6:,.1f} M frozen;"
            f" traced in {figures['lower_seconds']:.1f} s, compiled in {figures['compile_seconds']:.1f} s",
        ]
    )


def _memory(memory: Figures) -> str:
    names = {
        "arguments": "arguments: state and batch",
        "outputs": "outputs",
        "outputs_in_place": "of which in place of arguments",
        "temporaries": "temporaries",
        "program": "program",
        "total": "total",
        "limit": "a device has",
    }
    rows = [{"memory": text, "GiB": f"{memory[name] / GIB:,.2f}"} for name, text in names.items()]
    verdict = "fits" if memory["fits"] else f"does not fit: {ADVICE}"
    return f"{format_table(rows, left=('memory',))}\n{verdict}"


def _held_whole(arrays: Sequence[Figures]) -> str:
    if not arrays:
        return ""
    total, largest = sum(one["bytes"] for one in arrays), arrays[0]
    return (
        f"\nof the state every device holds {total / 1e6:,.1f} MB whole, small arrays: the largest is"
        f" {largest['name']}, {largest['bytes'] / 1e6:,.2f} MB"
    )


def _unknown_loops(flops: Figures) -> str:
    count = flops["loops_of_unknown_length"]
    return f" ({count} loops of unknown length counted once)" if count else ""


def _collectives(figures: Figures) -> str:
    rows = [
        {
            "collective": one["kind"],
            "link": one["link"],
            "times": f"{one['times']:,}",
            "MB sent by a device": f"{one['sent_bytes'] / 1e6:,.1f}",
        }
        for one in figures["collectives"]
    ]
    return format_table(rows, left=("collective", "link")) if rows else "nothing is sent between devices"


def _largest(largest: Figures) -> str:
    collectives = [
        {
            "largest collectives": one["kind"],
            "MB": f"{one['sent_bytes'] / 1e6:,.1f}",
            "times": f"{one['times']:,}",
            "of": str(one["group_size"]),
            "operand": _short(one["shape"], 40),
            "from": _short(one["source"], _SOURCE_LENGTH),
        }
        for one in largest["collectives"]
    ]
    arrays = [
        {
            "largest arrays": one["shape"],
            "MB": f"{one['bytes'] / 1e6:,.1f}",
            "from": _short(one["source"], _SOURCE_LENGTH),
        }
        for one in largest["arrays"]
    ]
    tables = [
        format_table(collectives, left=("largest collectives", "operand", "from")) if collectives else "",
        format_table(arrays, left=("largest arrays", "from")),
    ]
    return "\n\n".join(filter(None, tables))


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"...{text[3 - length :]}"


def _roofline(roofline: Figures) -> str:
    bounds = roofline["bounds_seconds"]
    dcn = f"; {roofline['dcn_bytes'] / 1e6:,.1f} MB cross slices, not in this bound" if roofline["dcn_bytes"] else ""
    return "\n".join(
        [
            "a step takes at least max(FLOPs / peak, memory bytes / bandwidth, ICI bytes / bandwidth) ="
            f" max({bounds['flops'] * 1e3:,.1f}, {bounds['memory'] * 1e3:,.1f}, {bounds['ICI'] * 1e3:,.1f}) ms{dcn}",
            f"at most {roofline['videos_per_second']:,.0f} videos/s,"
            f" {100 * roofline['model_flops_share']:.1f} % of the peak for the model's own FLOPs",
        ]
    )
