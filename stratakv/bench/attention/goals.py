"""The speed that the kernels set out for, against what was measured: met, or missed by how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stratakv.bench.goals import goal
from stratakv.bench.peers.llama import F16_PEERS

CONTEXT = 32768
GPU_BATCH, GPU_CONTEXT = 8, 131072
SDPA = "torch SDPA bf16"

Row = dict[str, Any]


def goals(rows: Sequence[Row], prefill: Sequence[Row], encode: Sequence[Row]) -> list[Row]:
    """Every goal of the kernels; what lacks its rows is not measured."""
    decode = {(row["name"], row["q_heads"] // row["kv_heads"]): row for row in rows if row["context"] == CONTEXT}

    def value(name: str, groups: int, field: str) -> float | None:
        row = decode.get((name, groups))
        return None if row is None else float(row[field])

    def times(slow: float | None, fast: float | None) -> float | None:
        return None if slow is None or fast is None else slow / fast

    turbo4 = value("turbo4", 4, "ms")
    torch_best = min(
        (
            row["ms"]
            for (_, groups), row in decode.items()
            if groups == 4 and row["k"] == "bf16" and row["peer"] == "torch"
        ),
        default=None,
    )
    found = [
        goal("turbo4, 4 query heads a kv head", "at most", 1.4, value("turbo4", 4, "ns_per_head_row"), "ns a head row"),
        goal("turbo4, 4 query heads a kv head", "at least", 0.75, _share(decode, "turbo4", 4), "of read bandwidth"),
        goal("turbo4 against the best dense bf16 of torch", "at least", 10, times(torch_best, turbo4), "times faster"),
    ]
    for type_, peers in (("f16", F16_PEERS), ("q4_0", ("q4_0",))):
        measured = [value(f"llama.cpp {peer}", 4, "ns_per_head_row") for peer in peers]
        theirs = min((each for each in measured if each is not None), default=None)
        faster = times(theirs, value("turbo4", 4, "ns_per_head_row"))
        found.append(goal(f"turbo4 against llama.cpp's {type_}", "at least", 8, faster, "times faster"))
    found += [
        goal("turbo4, 1 query head a kv head", "at least", 0.85, _share(decode, "turbo4", 1), "of read bandwidth"),
        goal(
            "turbo4, 8 query heads a kv head", "at most", 1.25, value("turbo4", 8, "ns_per_head_row"), "ns a head row"
        ),
    ]
    for type_ in ("turbo3", "turbo2"):
        found.append(
            goal(f"{type_} against turbo4", "at most", 1.15, times(value(type_, 4, "ms"), turbo4), "times the time")
        )
    for trellis, turbo, most in (("tcq4", "turbo4", 1.5), ("tcq3", "turbo3", 1.3)):
        found.append(
            goal(
                f"{trellis} against {turbo}",
                "at most",
                most,
                times(value(trellis, 4, "ms"), value(turbo, 4, "ms")),
                "times the time",
            )
        )
    for type_ in ("q8_0/turbo4", "q8_0"):
        found.append(goal(type_, "at least", 0.70, _share(decode, type_, 4), "of read bandwidth"))
    f16 = times(torch_best, value("f16", 4, "ms"))
    found.append(goal("f16 against the best dense bf16 of torch", "at least", 1, f16, "times faster"))
    for tokens, queries, words in ((8192, 8192, "prefill of 8k"), (CONTEXT + 512, 512, "a chunk of 512 on top of 32k")):
        found.append(_prefill_goal(prefill, tokens, queries, words))
    for type_, most in (("turbo4", 150), ("tcq4", 500)):
        ns = next((row["ns_per_vector"] for row in encode if row["name"] == type_ and row["head_dim"] == 128), None)
        found.append(goal(f"encode {type_}, one core", "at most", most, ns, "ns a 128-vector"))
    return found


def gpu_goals(rows: Sequence[Row], prefill: Sequence[Row], encode: Sequence[Row]) -> list[Row]:
    """Those set for an H100 or H200: 8 sequences of 128k tokens, 4 query heads a kv head; prompts of 32k."""
    decode = {
        row["name"]: row
        for row in rows
        if (row["batch"], row["context"]) == (GPU_BATCH, GPU_CONTEXT) and row["q_heads"] == 4 * row["kv_heads"]
    }

    def share(found: dict[str, Row]) -> float | None:
        return float(found["turbo4"]["share_of_copy_bandwidth"]) if "turbo4" in found else None

    def faster(name: str) -> float | None:
        return float(decode[SDPA]["ms"] / decode[name]["ms"]) if {SDPA, name} <= decode.keys() else None

    prompts = {
        row["name"]: row["ms"] / row["sdpa_ms"] for row in prefill if row["queries"] == CONTEXT == row["context"]
    }
    written = {row["name"]: row for row in encode}
    return [
        goal("turbo4, 8 sequences of 128k tokens", "at least", 0.70, share(decode), "of copy bandwidth"),
        goal("turbo4 against SDPA bf16, the same", "at least", 3, faster("turbo4"), "times faster"),
        goal("turbo3 against SDPA bf16, the same", "at least", 3.5, faster("turbo3"), "times faster"),
        goal("turbo4, a prompt of 32k against SDPA bf16", "at most", 1.15, prompts.get("turbo4"), "times the time"),
        goal("encode turbo4", "at least", 0.50, share(written), "of copy bandwidth"),
    ]


def _share(decode: dict[tuple[str, int], Row], name: str, groups: int) -> float | None:
    row = decode.get((name, groups))
    return None if row is None else float(row["share_of_read_bandwidth"])


def _prefill_goal(prefill: Sequence[Row], tokens: int, queries: int, words: str) -> Row:
    """turbo4's time over the fastest that torch has."""
    there = [row for row in prefill if (row["context"], row["queries"]) == (tokens, queries)]
    ours = next((row["ms"] for row in there if row["name"] == "turbo4"), None)
    best = min((row["ms"] for row in there if row["peer"]), default=None)
    ratio = None if ours is None or best is None else ours / best
    return goal(f"{words}, turbo4 against SDPA bf16 on dense tensors", "at most", 1.2, ratio, "times the time")
