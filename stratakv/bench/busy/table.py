"""Results of `stratakv bench busy` as text for a terminal, made from the JSON data alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stratakv.bench.goals import goals_in_lines
from stratakv.bench.table import align, conditions, notes


def format_busy(data: Mapping[str, Any]) -> str:
    """The whole of a "stratakv/bench-busy/1"."""
    counts = sorted({row["busy"] for row in data["rows"]})
    found = {(row["case"], row["busy"]): row for row in data["rows"]}
    cells = [["tokens/s beside busy processes", *(str(count) for count in counts)]]
    for case in dict.fromkeys(row["case"] for row in data["rows"]):
        cells.append([case])
        for count in counts:
            row = found[case, count]
            kept = f" ({row['kept']:.2f})" if count and row["kept"] is not None else ""
            cells[-1].append(f"{row['tokens_per_second']:.1f}{kept}")
    more = f"{data['model']} with {data['profile']}, {data['context']} tokens"
    return "\n".join([conditions(data, more), "", *align(cells), "", *goals_in_lines(data["goals"]), *notes(data)])
