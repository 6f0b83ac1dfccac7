"""What packed GGUF weights set out for beside llama.cpp, against what was measured in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stratakv.bench.goals import goal
from stratakv.bench.peers.llama import F16_PEERS

OURS = "turbo4"
# context, llama.cpp's cache, times its tokens per second
_DECODE = ((1024, "f16", 0.85), (8192, "f16", 1.5), (32768, "f16", 3.0), (32768, "q8_0", 2.5))

Row = dict[str, Any]


def goals(rows: Sequence[Row]) -> list[Row]:
    """Goals of every model whose weights stayed packed here and that llama.cpp ran too, as `bench.goals.goal` gives them."""
    found = []
    packed = [row for row in rows if row["cache"] == OURS and row.get("resident_weights")]
    for model in dict.fromkeys(row["model"] for row in packed):
        cells = {(row["cache"], row["context"]): row for row in rows if row["model"] == model}
        theirs = next((row for (cache, _), row in cells.items() if cache.startswith("llama.cpp ")), None)
        if theirs is None:
            continue
        resident = max(row["resident_weights"] for row in packed if row["model"] == model)
        found.append(
            goal(f"{model}: weights in memory", "at most", 1.05, resident / theirs["weight_bytes"], "times the file")
        )
        for context, type_, limit in _DECODE:
            ratio = _ratio(cells, context, type_, "tokens_per_second")
            words = f"{model}: decoding at {context:,} tokens with {OURS} against llama.cpp's {type_}"
            found.append(goal(words, "at least", limit, ratio, "times the speed"))
        first = min(context for _, context in cells)
        ratio = _ratio(cells, first, "f16", "prefill_tokens_per_second")
        found.append(
            goal(f"{model}: prefill with {OURS} against llama.cpp's f16", "at least", 0.8, ratio, "times the speed")
        )
    return found


def _ratio(cells: dict[tuple[str, int], Row], context: int, type_: str, field: str) -> float | None:
    """Ours by llama.cpp's with that cache; with f16 by the faster of its two ways."""
    peers = F16_PEERS if type_ == "f16" else (type_,)
    theirs = [row[field] for peer in peers if (row := cells.get((f"llama.cpp {peer}", context))) and row.get(field)]
    ours = cells.get((OURS, context))
    return float(ours[field] / max(theirs)) if ours is not None and ours.get(field) and theirs else None
