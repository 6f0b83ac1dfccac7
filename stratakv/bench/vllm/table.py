"""Results of `stratakv bench vllm` as text for a terminal, made from the JSON data alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stratakv.bench.goals import goals_in_lines
from stratakv.bench.table import align, conditions, notes


def format_vllm(data: Mapping[str, Any]) -> str:
    """The whole of a "stratakv/bench-vllm/1"."""
    how = "compiled" if data["compiled"] else "eager"
    more = f"vLLM {data['vllm']} ({how}), {data['model']} in {data['dtype']}, {data['cache_bytes'] / 2**20:.0f} MiB of cache"
    requests = f"{data['requests']} requests of {data['prompt']} + {data['answer']} tokens"
    cells = [[requests, "tokens/s", "", "times stock", "TTFT ms", "tokens fit", "4k sequences"]]
    for row in data["rows"]:
        speeds = row["tokens_per_second_rounds"]
        cells.append(
            [
                row["cache"],
                f"{row['tokens_per_second']:.1f}",
                f"({min(speeds):.0f}-{max(speeds):.0f})",
                f"{row['times_stock']:.2f}",
                f"{row['ttft_ms']:.0f}",
                f"{row['tokens_that_fit']:,}",
                "" if row["long"] is None else str(row["long"]),
            ]
        )
    lines = [conditions(data, more), "", *align(cells), ""]
    cells = [["one sequence at", "tokens", "tokens/s", "", "times stock", "TTFT ms", "times stock"]]
    for row in data["rows"]:
        for context in row["contexts"]:
            speeds = context["tokens_per_second_rounds"]
            cells.append(
                [
                    row["cache"],
                    f"{context['tokens']:,}",
                    f"{context['tokens_per_second']:.1f}",
                    f"({min(speeds):.1f}-{max(speeds):.1f})",
                    f"{context['times_stock']:.2f}",
                    f"{context['ttft_ms']:.0f}",
                    f"{context['ttft_times_stock']:.2f}",
                ]
            )
    if len(cells) > 1:
        lines += [*align(cells), ""]
    return "\n".join([*lines, *goals_in_lines(data["goals"]), *notes(data)])
