"""Results of `stratakv bench` as text for a terminal, made from the JSON data alone."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from stratakv.measure.bench_goals import goal_in_words
from stratakv.measure.table import WIDTH, format_warnings

Row = Mapping[str, Any]


def format_attention(data: Mapping[str, Any]) -> str:
    """The whole of a "stratakv/bench-attention/1"."""
    lines = [conditions(data, f"kernel {data['kernel']}")]
    if data["read_bandwidth_gb_s"] is not None:
        lines.append(f"read bandwidth {data['read_bandwidth_gb_s']:.1f} GB/s (median over the groups below)")
    for context, q_heads in dict.fromkeys((row["context"], row["q_heads"]) for row in data["rows"]):
        rows = [row for row in data["rows"] if (row["context"], row["q_heads"]) == (context, q_heads)]
        lines += ["", *_decode_group(rows)]
    for context, queries in dict.fromkeys((row["context"], row["queries"]) for row in data["prefill"]):
        rows = [row for row in data["prefill"] if (row["context"], row["queries"]) == (context, queries)]
        best = min(row["ms"] for row in rows if row["peer"])
        lines += ["", f"prefill: {queries:,} queries over {context:,} tokens, {rows[0]['q_heads']} query heads, bf16"]
        cells = [["", "ms", "times torch's best"]]
        cells += [[row["name"], _ms(row["ms"]), f"{row['ms'] / best:.2f}"] for row in rows]
        lines += align(cells)
    if data["encode"]:
        lines += ["", "encode into pages, one thread, the cache's update with its Python"]
        cells = [["", "ns a vector (512 tokens)", "us to append a token (all heads, K and V)"]]
        cells += [[row["name"], f"{row['ns_per_vector']:.0f}", f"{row['us_per_token']:.0f}"] for row in data["encode"]]
        lines += align(cells)
    lines += ["", "goals (32k tokens, two cores)", *(f"  {goal_in_words(goal)}" for goal in data["goals"])]
    return "\n".join([*lines, *notes(data)])


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
                    _ms(row["ms"]),
                    f"{_ms(low)} - {_ms(high)}",
                    "" if first is None else f"{row['tokens_per_second'] / first:.2f}",
                    _mib(row["cache_bytes"]),
                    _mib(row["peak_bytes"]),
                ]
            )
            if prompt:
                speed = row.get("prefill_tokens_per_second")
                cells[-1].append("" if speed is None else f"{speed:.0f}")
        lines += align(cells)
    if data.get("goals"):
        lines += ["", "goals", *(f"  {goal_in_words(goal)}" for goal in data["goals"])]
    return "\n".join([*lines, *notes(data)])


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
    goals = ["goals", *(f"  {goal_in_words(goal)}" for goal in data["goals"])]
    return "\n".join([conditions(data, more), "", *align(cells), "", *goals, *notes(data)])


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


def _decode_group(rows: Sequence[Row]) -> list[str]:
    first = rows[0]
    best = min((row["ms"] for row in rows if row["peer"] == "torch" and row["k"] == "bf16"), default=None)
    lines = [
        f"{first['context']:,} tokens, {first['q_heads']} query heads, {first['kv_heads']} kv heads, head_dim "
        f"{first['head_dim']}; read bandwidth {first['read_gb_s']:.1f} GB/s"
    ]
    cells = [["", "ms", "quartiles", "ns a head row", "GB/s", "of bandwidth", "torch's best bf16 / this"]]
    for row in rows:
        low, high = row["ms_quartiles"]
        cells.append(
            [
                row["name"],
                _ms(row["ms"]),
                f"{_ms(low)} - {_ms(high)}",
                f"{row['ns_per_head_row']:.2f}",
                f"{row['packed_gb_s']:.1f}",
                f"{row['share_of_read_bandwidth']:.0%}",
                "" if best is None else f"{best / row['ms']:.2f}",
            ]
        )
    return lines + align(cells)


def conditions(data: Mapping[str, Any], more: str) -> str:
    """Machine and threads in a line."""
    return f"{data['machine']['cpu']}, {data['threads']} threads, torch {data['machine']['torch']}, {more}"


def notes(data: Mapping[str, Any]) -> list[str]:
    """Notes and warnings, a paragraph each."""
    lines = [""]
    for note in data["notes"]:
        lines += textwrap.wrap(f"note: {note}", WIDTH, subsequent_indent="  ")
    return lines + format_warnings(data["warnings"])


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _mib(value: int | None) -> str:
    return "?" if value is None else f"{value / 2**20:,.0f}"
