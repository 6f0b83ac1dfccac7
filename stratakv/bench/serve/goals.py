"""What serving set out for, against what was measured in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stratakv.bench.goals import goal

Row = dict[str, Any]
# clients at once: times the tokens per second of one
_CLIENTS = {4: 2.5, 16: 4.0}


def goals(rows: Sequence[Row], prefixes: Sequence[Row], capacity: Sequence[Row], prefix_tokens: int) -> list[Row]:
    """For every profile of ours, as `bench.goals.goal` gives them."""
    found = []
    ours = [row for row in rows if row["server"] == "stratakv" and row["loop"] == "closed"]
    for profile in dict.fromkeys(row["profile"] for row in ours):
        speed = {row["clients"]: row["tokens_per_second"] for row in ours if row["profile"] == profile}
        for clients, limit in _CLIENTS.items():
            if {1, clients} <= speed.keys():
                more = speed[clients] / speed[1]
                words = f"{profile}: {clients} clients against one"
                found.append(goal(words, "at least", limit, more, "times the throughput"))
        prefix = next(row for row in prefixes if row["server"] == "stratakv" and row["profile"] == profile)
        found.append(
            goal(
                f"{profile}: a beginning of {prefix_tokens:,} tokens seen before",
                "at least",
                10,
                prefix["times"],
                "times less to the first token",
            )
        )
        found.append(
            goal(f"{profile}: beside a long prompt", "at most", 2, prefix.get("gap_times"), "times the idle gap")
        )
    f16 = next((row["at_once"] for row in capacity if row["profile"] == "f16"), None)
    for row in capacity:
        if row["profile"] != "f16":
            more = row["at_once"] / f16 if f16 else None
            words = f"{row['profile']}: sequences of 2k tokens at once in equal memory"
            found.append(goal(words, "at least", 3.5, more, "times f16's"))
    return found
