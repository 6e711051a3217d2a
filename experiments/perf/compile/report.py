"""The figures of `stgt compile` as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.perf.compile.chips import GIB
from experiments.perf.compile.train_step import ADVICE
from experiments.tables import format_table, number, shorten

Figures = Mapping[str, Any]
MEMORY = {
    "arguments": "arguments: state and batch",
    "outputs": "outputs",
    "outputs_in_place": "of which in place of arguments",
    "temporaries": "temporaries",
    "program": "program",
    "total": "total",
    "limit": "a device has",
}


def format_figures(figures: Figures) -> str:
    """Returns the text for the figures of `compile_recipe`."""
    sections = [
        _header(figures),
        _memory(figures["memory"]) + _held_whole(figures["held_whole"]),
        _flops(figures["flops"]),
        _collectives(figures["collectives"]),
        *_largest(figures["largest"]),
        _roofline(figures["roofline"]),
    ]
    return "\n\n".join(section for section in sections if section)


def format_comparison(frames: Figures, tokens: Figures) -> str:
    """Returns the table of the steps that take frames and cached tokens."""
    rows = []
    for name, figures in (("frames, through the ViT", frames), ("cached tokens", tokens)):
        roofline, read = figures["roofline"], figures["input"]
        rows.append(
            {
                "a step from": name,
                **{f"{bound} ms": f"{seconds * 1e3:,.1f}" for bound, seconds in roofline["bounds_seconds"].items()},
                "videos/s": f"{roofline['videos_per_second']:,.0f}",
                "memory GiB": number(figures["memory"]["total"], ",.2f", scale=1 / GIB),
                "MB a clip": f"{read['bytes_per_clip'] / 1e6:,.2f}",
                "GB/s read a device": f"{read['bytes_per_second'] / 1e9:,.3f}",
            }
        )
    ratio = tokens["roofline"]["videos_per_second"] / frames["roofline"]["videos_per_second"]
    work = frames["flops"]["model"] / tokens["flops"]["model"]
    return (
        f"{format_table(rows, left=('a step from',))}\ncached tokens: {ratio:.2f} times the videos/s by these bounds;"
        f" by the model's FLOPs alone {work:.2f} times"
    )


def _header(figures: Figures) -> str:
    topology, parameters = figures["topology"], figures["parameters"]
    cores = topology["num_devices"] // topology["num_chips"]
    mesh = ", ".join(f"{axis} {size}" for axis, size in figures["mesh"].items())
    return (
        f"{topology['name']} x {topology['num_slices']}: {topology['num_chips']} chips"
        + (f" of {cores} devices" if cores > 1 else "")
        + f", jax {figures['jax']}; mesh: {mesh}; {figures['batch_size']} clips a step\n"
        f"parameters: {_mega(parameters['trainable'])} M trainable, {_mega(parameters['frozen'])} M frozen;"
        f" traced in {figures['lower_seconds']:.1f} s, compiled in {figures['compile_seconds']:.1f} s"
    )


def _memory(memory: Figures) -> str:
    rows = [{"memory": text, "GiB": number(memory[name], ",.2f", scale=1 / GIB)} for name, text in MEMORY.items()]
    verdict = "fits" if memory["fits"] else f"does not fit: {ADVICE}"
    return f"{format_table(rows, left=('memory',))}\n{verdict}"


def _held_whole(arrays: Sequence[Figures]) -> str:
    if not arrays:
        return ""
    return (
        f"\nreplicated on every device: {_mega(sum(one['bytes'] for one in arrays))} MB of the state; the largest array"
        f" is {arrays[0]['name']}, {arrays[0]['bytes'] / 1e6:,.2f} MB"
    )


def _flops(flops: Figures) -> str:
    loops = flops["loops_of_unknown_length"]
    return (
        f"GFLOP of a device in a step: {flops['program'] / 1e9:,.1f} in the program, {flops['model'] / 1e9:,.1f} in the"
        f" model; ratio {flops['ratio']:.2f}" + (f" ({loops} loops of unknown length counted once)" * bool(loops))
    )


def _collectives(totals: Sequence[Figures]) -> str:
    rows = [
        {
            "collective": one["kind"],
            "link": one["link"],
            "times": f"{one['times']:,}",
            "MB sent by a device": _mega(one["sent_bytes"]),
        }
        for one in totals
    ]
    return format_table(rows, left=("collective", "link")) if rows else "no communication between devices"


def _largest(largest: Figures) -> list[str]:
    collectives = [
        {
            "largest collectives": one["kind"],
            "MB": _mega(one["sent_bytes"]),
            "times": f"{one['times']:,}",
            "of": str(one["group_size"]),
            "operand": shorten(one["shape"], 40),
            "from": shorten(one["source"], 100),
        }
        for one in largest["collectives"]
    ]
    arrays = [
        {"largest arrays": one["shape"], "MB": _mega(one["bytes"]), "from": shorten(one["source"], 100)}
        for one in largest["arrays"]
    ]
    left = ("largest collectives", "largest arrays", "operand", "from")
    return [format_table(rows, left=left) for rows in (collectives, arrays) if rows]


def _roofline(roofline: Figures) -> str:
    times = ", ".join(f"{roofline['bounds_seconds'][name] * 1e3:,.1f}" for name in ("flops", "memory", "ICI"))
    dcn = f"; {_mega(roofline['dcn_bytes'])} MB cross slices, not in this bound" if roofline["dcn_bytes"] else ""
    return (
        "a step takes at least max(FLOPs / peak, memory bytes / bandwidth, ICI bytes / bandwidth) ="
        f" max({times}) ms{dcn}\nat most {roofline['videos_per_second']:,.0f} videos/s,"
        f" {100 * roofline['model_flops_share']:.1f} % of the peak FLOP/s in the model"
    )


def _mega(value: float) -> str:
    return number(value, ",.1f", scale=1e-6)
