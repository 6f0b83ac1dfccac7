"""Results of `stratakv bench serve` as text for a terminal, made from the JSON data alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stratakv.bench.goals import goals_in_lines
from stratakv.bench.table import align, conditions, notes


def format_serve(data: Mapping[str, Any]) -> str:
    """The whole of a "stratakv/bench-serve/1"."""
    lines = [conditions(data, "a server process a profile, over HTTP on this machine"), ""]
    cells = [["short prompts", "load", "tokens/s", "", "TTFT p50", "p99", "gap p50", "p99 ms"]]
    for row in data["rows"]:
        load = f"{row['clients']} at once" if row["loop"] == "closed" else f"{row['rate']:g} a second"
        times = [row[name] for name in ("ttft_ms_p50", "ttft_ms_p99", "gap_ms_p50", "gap_ms_p99")]
        cells.append([_name(row), load, f"{row['tokens_per_second']:.1f}", _range(row), *map(_ms, times)])
    lines += [*align(cells), ""]
    names = (
        "ttft_new_ms",
        "ttft_seen_ms",
        "gap_alone_ms_p50",
        "gap_beside_ms_p50",
        "gap_alone_ms_p99",
        "gap_beside_ms_p99",
    )
    cells = [
        [f"{data['prefix_tokens']:,} tokens", "TTFT new", "seen", "gap alone", "beside", "p99 alone", "p99 beside ms"],
        *([_name(row), *(_ms(row[name]) for name in names)] for row in data["prefix"]),
    ]
    lines += [*align(cells), ""]
    cells = [["sequences of 2k tokens at once", "in MiB", "asked for", "ran", "preempted"]]
    for row in data["capacity"]:
        counts = [str(row[name]) for name in ("asked", "at_once", "preempted")]
        cells.append([row["profile"], f"{row['cache_bytes'] / 2**20:.0f}", *counts])
    lines += [
        *(align(cells) if data["capacity"] else ()),
        "",
        *goals_in_lines(data["goals"]),
    ]
    return "\n".join([*lines, *notes(data)])


def _range(row: Mapping[str, Any]) -> str:
    rounds = row["tokens_per_second_rounds"]
    return f"({min(rounds):.0f}-{max(rounds):.0f})" if len(rounds) > 1 else ""


def _name(row: Mapping[str, Any]) -> str:
    return row["profile"] if row["server"] == "stratakv" else f"{row['server']} {row['profile']}"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
