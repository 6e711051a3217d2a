"""Text tables."""

from collections.abc import Collection, Mapping, Sequence


def align(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """Returns rows of cells as lines with aligned columns; `right` holds the numbers of the columns aligned right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    specs = [f"{'>' if column in right else '<'}{width}" for column, width in enumerate(widths)]
    lines = ("  ".join(map(format, row, specs)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def format_table(rows: Sequence[Mapping[str, str]], *, left: Collection[str] = ()) -> str:
    """Returns the rows, column -> text, under a head of their common keys. Columns not in `left` are aligned right."""
    head = list(rows[0])
    right = [number for number, column in enumerate(head) if column not in left]
    return align([head, *([row[column] for column in head] for row in rows)], right=right)


def number(value: float | None, spec: str = ".3g", *, scale: float = 1.0) -> str:
    """Formats `value * scale`; None becomes a dash."""
    return "-" if value is None else format(value * scale, spec)


def shorten(text: str, length: int) -> str:
    """Returns the text, or its last characters after "..." if it is longer than `length`."""
    return text if len(text) <= length else f"...{text[3 - length :]}"
