"""Figures as plain text: aligned columns, and units a reader can compare."""

from collections.abc import Mapping, Sequence

MISSING = "-"


def format_table(rows: Sequence[Mapping[str, str]], *, left: Sequence[str] = ()) -> str:
    """Aligns rows under their keys, which all share.

    Args:
      rows: a text for each column.
      left: columns aligned on the left, as words are; numbers stand on the right.
    """
    columns = list(rows[0])
    cells = [columns, *([row[column] for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        aligned = (
            text.ljust(width) if column in left else text.rjust(width)
            for column, text, width in zip(columns, line, widths, strict=True)
        )
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def number(value: float | None, spec: str = ".3g", *, scale: float = 1.0) -> str:
    """`value * scale` in a format of Python's; a dash where there is none."""
    return MISSING if value is None else format(value * scale, spec)


def device_line(device: Mapping[str, object]) -> str:
    """`describe_device` on one line."""
    return "{device} x {num_devices}, jax {jax}, {dtype}, {date}".format(**device)


def peak_line(flops_per_second: float, bytes_per_second: float) -> str:
    """The measured peaks on one line."""
    return (
        f"peak measured in this run: {flops_per_second / 1e9:,.0f} GFLOP/s (square matrix product),"
        f" {bytes_per_second / 1e9:,.1f} GB/s (a + s * b)"
    )
