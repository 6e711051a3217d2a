"""Text tables of measured figures."""

from collections.abc import Mapping, Sequence

MISSING = "-"


def format_table(rows: Sequence[Mapping[str, str]], *, left: Sequence[str] = ()) -> str:
    """Returns the rows as a table whose head is their common keys.

    Args:
      rows: column -> text.
      left: columns that are aligned left; the others are aligned right.
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
    """Formats `value * scale`; None becomes a dash."""
    return MISSING if value is None else format(value * scale, spec)


def shorten(text: str, length: int) -> str:
    """Returns the text, or its last characters after "..." if it is longer than `length`."""
    return text if len(text) <= length else f"...{text[3 - length :]}"


def device_line(device: Mapping[str, object]) -> str:
    """Returns the result of `describe_device` as a line."""
    return "{device} x {num_devices}, jax {jax}, {dtype}, {date}".format(**device)


def peak_line(flops_per_second: float, bytes_per_second: float) -> str:
    """Returns the measured peaks as a line."""
    return (
        f"peak measured in this run: {flops_per_second / 1e9:,.0f} GFLOP/s (square matrix product),"
        f" {bytes_per_second / 1e9:,.1f} GB/s (a + s * b)"
    )
