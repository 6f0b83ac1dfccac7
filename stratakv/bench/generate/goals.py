"""What packed GGUF weights set out for beside llama.cpp, against what was measured in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stratakv.bench.goals import goal
from stratakv.bench.peers.llama import F16_PEERS
from stratakv.engine.describe import EMBEDDED

OURS = ("turbo4", "f16")
# tokens of context: times the tokens per second of llama.cpp's f16, which is its fastest cache
_DECODE = {128: 1.0, 1024: 1.0, 8192: 1.5, 32768: 3.0}
# a step of 8 million parameters is short beside what Python adds to it
_DECODE_EMBEDDED = {128: 0.8, 1024: 0.8, 8192: 1.5, 32768: 3.0}
_PREFILL = 1.0

Row = dict[str, Any]


def goals(rows: Sequence[Row]) -> list[Row]:
    """Goals of every model whose weights stayed packed here and that llama.cpp ran too, as `bench.goals.goal` gives them."""
    found = []
    packed = [row for row in rows if row["cache"] in OURS and row.get("resident_weights")]
    for model in dict.fromkeys(row["model"] for row in packed):
        cells = {(row["cache"], row["context"]): row for row in rows if row["model"] == model}
        theirs = next((row for (cache, _), row in cells.items() if cache.startswith("llama.cpp ")), None)
        if theirs is None:
            continue
        resident = max(row["resident_weights"] for row in packed if row["model"] == model)
        found.append(
            goal(f"{model}: weights in memory", "at most", 1.05, resident / theirs["weight_bytes"], "times the file")
        )
        limits = _DECODE_EMBEDDED if model == EMBEDDED else _DECODE
        for ours, context in ((row["cache"], row["context"]) for row in packed if row["model"] == model):
            if context in limits:
                ratio = _ratio(cells, ours, context, "tokens_per_second")
                words = f"{model}: decoding at {context:,} tokens with {ours} against llama.cpp's f16"
                found.append(goal(words, "at least", limits[context], ratio, "times the speed"))
            ratio = _ratio(cells, ours, context, "prefill_tokens_per_second")
            if ratio is not None:
                words = f"{model}: prefill with {ours} against llama.cpp's f16"
                found.append(goal(words, "at least", _PREFILL, ratio, "times the speed"))
    return found


def _ratio(cells: dict[tuple[str, int], Row], ours: str, context: int, field: str) -> float | None:
    """Ours by the faster of llama.cpp's two ways with f16."""
    theirs = [row[field] for peer in F16_PEERS if (row := cells.get((f"llama.cpp {peer}", context))) and row.get(field)]
    mine = cells[ours, context].get(field)
    return float(mine / max(theirs)) if mine and theirs else None
