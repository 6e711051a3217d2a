"""The report of an assembly as text."""

from collections.abc import Mapping
from typing import Any

_FEW = 3  # names of one reason that are written out; the saved report has all


def format_report(report: Mapping[str, Any]) -> str:
    """Returns the text for what `Assembly.report` returns."""
    lines = []
    for source in report["sources"]:
        lines.append(f"{source['path']} ({source['kind']}): {len(source['taken'])} tensors taken")
        groups = {f"left out, {reason}": names for reason, names in source["left_out"].items()}
        groups |= {f"replaced by {path}": names for path, names in source["replaced_by"].items()}
        lines += [f"  {reason}: {_named(names)}" for reason, names in groups.items()]
        lines += [f"  note: {note}" for note in source["notes"]]
    width = max(map(len, report["parameters"]), default=0)
    lines.append("")
    for part, origins in report["parameters"].items():
        where = ", ".join(f"{count} from {origin}" for origin, count in origins.items())
        lines.append(f"{part:<{width}}  {where.replace('from none: ', '')}")
    lines.append("")
    lines += [f"random: {_named(report['random'])}"] * bool(report["random"])
    lines += [f"note: {note}" for note in report["notes"]]
    lines += [f"{name}: from {setting['from']}" for name, setting in report["settings"].items()]
    return "\n".join(lines)


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more
