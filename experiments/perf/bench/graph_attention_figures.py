"""The figures of `stgt bench graph-attention`: rows, ratios to dense attention, growth with T, and text tables."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from experiments.perf.bench.device import describe_run
from experiments.tables import format_table, number

FORWARD = "forward"
PASSES = (FORWARD, "forward + backward")


@dataclass(frozen=True)
class Row:
    """One implementation at one T. A figure that was not measured is None, and `note` tells the reason."""

    implementation: str
    frames: int
    passes: str
    seconds: float | None = None
    repeats: int = 0
    temporary_bytes: int | None = None
    peak_flops_share: float | None = None
    peak_bytes_share: float | None = None
    note: str = ""


def add_ratios(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns the rows as dicts with their time and memory relative to dense attention at the same T and passes."""
    dense = {(row.frames, row.passes): row for row in rows if row.implementation == "dense"}
    results = []
    for row in rows:
        base = dense.get((row.frames, row.passes), Row("dense", row.frames, row.passes))
        time, memory = _ratio(row.seconds, base.seconds), _ratio(row.temporary_bytes, base.temporary_bytes)
        results.append(asdict(row) | {"time_to_dense": time, "memory_to_dense": memory})
    return results


def growth(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns the growth exponents in T of each implementation's time and memory, over all T with a figure."""
    kinds = dict.fromkeys((row.implementation, row.passes) for row in rows)
    results = []
    for implementation, passes in kinds:
        own = [row for row in rows if (row.implementation, row.passes) == (implementation, passes)]
        times = [(row.frames, row.seconds) for row in own if row.seconds]
        memories = [(row.frames, float(row.temporary_bytes)) for row in own if row.temporary_bytes]
        exponents = {"time_exponent": growth_exponent(times), "memory_exponent": growth_exponent(memories)}
        results.append({"implementation": implementation, "passes": passes, **exponents})
    return results


def growth_exponent(figures: Sequence[tuple[int, float]]) -> float | None:
    """Fits y ~ x^k to positive (x, y) by least squares of the logarithms; returns k, None for fewer than two x."""
    if len({x for x, _ in figures}) < 2:
        return None
    x, y = np.log(np.asarray(figures, np.float64)).T
    return float(np.polyfit(x, y, 1)[0])


def format_figures(figures: Mapping[str, Any]) -> str:
    """Returns the text for the figures of `bench_graph_attention`."""
    lines = [describe_run(figures)]
    for passes in PASSES:
        rows = [row for row in figures["rows"] if row["passes"] == passes]
        lines += ["", passes, format_table([_cells(row) for row in rows], left=("implementation", "note"))]
    growth_rows = [
        {
            "implementation": row["implementation"],
            "passes": row["passes"],
            "time": number(row["time_exponent"], ".2f"),
            "temporaries": number(row["memory_exponent"], ".2f"),
        }
        for row in figures["growth"]
    ]
    lines += ["", "growth with T: k of T^k", format_table(growth_rows, left=("implementation", "passes"))]
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "implementation": row["implementation"],
        "T": str(row["frames"]),
        "ms": number(row["seconds"], ",.2f", scale=1e3),
        "temporaries MB": number(row["temporary_bytes"], ",.1f", scale=1e-6),
        "time / dense": number(row["time_to_dense"]),
        "memory / dense": number(row["memory_to_dense"]),
        "% of FLOP/s": number(row["peak_flops_share"], ".1f", scale=100),
        "% of GB/s": number(row["peak_bytes_share"], ".1f", scale=100),
        "note": row["note"],
    }


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None
