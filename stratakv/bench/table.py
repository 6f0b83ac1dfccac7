"""What the tables of all benchmarks share: conditions, columns, notes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from stratakv.measure.table import WIDTH, format_warnings


def align(cells: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def conditions(data: Mapping[str, Any], more: str) -> str:
    """Machine and threads in a line."""
    return f"{data['machine']['cpu']}, {data['threads']} threads, torch {data['machine']['torch']}, {more}"


def notes(data: Mapping[str, Any]) -> list[str]:
    """Notes and warnings, a paragraph each."""
    lines = [""]
    for note in data["notes"]:
        lines += textwrap.wrap(f"note: {note}", WIDTH, subsequent_indent="  ")
    return lines + format_warnings(data["warnings"])


def milliseconds(value: float) -> str:
    """Three decimals below 10, else one."""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
