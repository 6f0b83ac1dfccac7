"""Results of `stratakv bench generate` as text for a terminal, made from the JSON data alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stratakv.bench.goals import goals_in_lines
from stratakv.bench.table import align, conditions, milliseconds, notes


def format_generate(data: Mapping[str, Any]) -> str:
    """The whole of a "stratakv/bench-generate/1"."""
    lines = [conditions(data, "one process a row")]
    for model, context in dict.fromkeys((row["model"], row["context"]) for row in data["rows"]):
        rows = [row for row in data["rows"] if (row["model"], row["context"]) == (model, context)]
        first = next((row["tokens_per_second"] for row in rows if row["cache"] == "DynamicCache"), None)
        lines += ["", f"{model}, {context:,} tokens of context"]
        prompt = next((row["prefill_tokens"] for row in rows if row.get("prefill_tokens")), None)
        cells = [["cache", "tokens/s", "ms a token", "quartiles", "times DynamicCache", "cache MiB", "peak MiB"]]
        cells[0] += [f"prompt of {prompt:,}, tokens/s"] if prompt else []
        for row in rows:
            low, high = row["ms_quartiles"]
            cells.append(
                [
                    row["cache"],
                    f"{row['tokens_per_second']:.1f}",
                    milliseconds(row["ms"]),
                    f"{milliseconds(low)} - {milliseconds(high)}",
                    "" if first is None else f"{row['tokens_per_second'] / first:.2f}",
                    _mib(row["cache_bytes"]),
                    _mib(row["peak_bytes"]),
                ]
            )
            if prompt:
                speed = row.get("prefill_tokens_per_second")
                cells[-1].append("" if speed is None else f"{speed:.0f}")
        lines += align(cells)
        lines += [_spans(row["cache"], row["spans"]) for row in rows if "spans" in row]
    if data.get("goals"):
        lines += ["", *goals_in_lines(data["goals"])]
    return "\n".join([*lines, *notes(data)])


def _spans(cache: str, found: Mapping[str, Any]) -> str:
    pages = ", ".join(f"{each:.2f}" for each in found["page_tokens"])
    words = f"; tokens that fill a page take {pages} times the others'" if pages else ""
    return f"{cache}: {found['ratio']:.3f} times {found['without']}'s time a token, in turn{words}"


def _mib(value: int | None) -> str:
    return "?" if value is None else f"{value / 2**20:,.0f}"
