"""Results of `stratakv bench attention` as text for a terminal, made from the JSON data alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stratakv.bench.goals import goals_in_lines
from stratakv.bench.table import align, conditions, milliseconds, notes

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
        cells += [[row["name"], milliseconds(row["ms"]), f"{row['ms'] / best:.2f}"] for row in rows]
        lines += align(cells)
    if data["encode"]:
        lines += ["", "encode into pages, one thread, the cache's update with its Python"]
        cells = [["", "ns a vector (512 tokens)", "us to append a token (all heads, K and V)"]]
        cells += [[row["name"], f"{row['ns_per_vector']:.0f}", f"{row['us_per_token']:.0f}"] for row in data["encode"]]
        lines += align(cells)
    lines += ["", *goals_in_lines(data["goals"], "goals (32k tokens, two cores)")]
    return "\n".join([*lines, *notes(data)])


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
                milliseconds(row["ms"]),
                f"{milliseconds(low)} - {milliseconds(high)}",
                f"{row['ns_per_head_row']:.2f}",
                f"{row['packed_gb_s']:.1f}",
                f"{row['share_of_read_bandwidth']:.0%}",
                "" if best is None else f"{best / row['ms']:.2f}",
            ]
        )
    return lines + align(cells)
