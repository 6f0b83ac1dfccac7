"""What the GPU's attention kernel would need on cards that aren't at hand: from its machine code, nothing is measured.

A roofline: a row (one kv head's K and V of one token) costs bytes and instructions; the time is that of the dearest of
memory, instruction issue, integer units, shared memory and matrix units, each as fast as its data sheet says. Real
kernels also wait, so these times are the least possible ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from stratakv.bench.attention.caches import Pair, Shape, pair_name
from stratakv.errors import UserError
from stratakv.kvtypes import kv_type
from stratakv.pages.layout import PageLayout

SCHEMA = "stratakv/predict-attention/2"
WORDS = "predicted from machine code, not measured on a GPU"
BATCH, CONTEXT = 8, 131072


@dataclass(frozen=True)
class Card:
    """By its data sheet. capability: 90 for 9.0; clock: GHz; bandwidth: GB/s; matrix: products of 16 x 8 x 16 in f16 with sums in
    float32 that a multiprocessor does a cycle."""

    name: str
    capability: int
    multiprocessors: int
    clock: float
    bandwidth: float
    matrix: float


CARDS = (
    Card("A100 SXM 80 GB", 80, 108, 1.41, 2039, 0.5),
    Card("RTX 4090", 89, 128, 2.52, 1008, 0.125),
    Card("H100 SXM", 90, 132, 1.755, 3350, 1.0),
)
# Warp instructions that a multiprocessor of 8.0 to 9.0 takes a cycle
_ISSUED, _INTEGER = 4.0, 2.0
_INTEGER_NAMES = (
    "LOP3",
    "SHF",
    "PRMT",
    "IADD3",
    "LEA",
    "ISETP",
    "SEL",
    "VIADD",
    "SGXT",
    "PLOP3",
    "P2R",
    "IMNMX",
    "VIMNMX",
)


def predict(
    shape: Shape, pairs: Sequence[Pair], groups: Sequence[int], cards: Sequence[Card] = CARDS
) -> dict[str, Any]:
    """Rows for decoding at batch 8 and 131,072 tokens, schema "stratakv/predict-attention/2". UserError without Triton."""
    if find_spec("triton") is None:
        raise UserError("--predict compiles the GPU's kernels, and Triton isn't installed: pip install 'stratakv[gpu]'")
    from stratakv.kernels.triton.side import refusal

    rows, left_out = [], []
    for pair in pairs:
        k, v = (kv_type(name) for name in pair)
        if why := refusal(k, shape.head_dim) or refusal(v, shape.head_dim):
            left_out.append(f"{pair_name(pair)}: {why}")
            continue
        layout = PageLayout(k, v, shape.head_dim, shape.head_dim, shape.kv_heads, order="rows")
        rows += [_row(pair, layout, each, card) for each in groups for card in cards]
    return {
        "schema": SCHEMA,
        "note": WORDS,
        "batch": BATCH,
        "context": CONTEXT,
        "rows": rows,
        "left_out": left_out,
    }


def _row(pair: Pair, layout: PageLayout, groups: int, card: Card) -> dict[str, Any]:
    from stratakv.kernels.triton.machine_code import attention_code
    from stratakv.kernels.triton.shape import shape_of

    taken, code = shape_of(layout, groups, 1), attention_code(card.capability, layout, groups)
    a_row = taken.warps / taken.tile
    nbytes = layout.k_bytes + layout.v_bytes
    cycles = {
        "issue": code.instructions * a_row / _ISSUED,
        "integers": code.count(*_INTEGER_NAMES) * a_row / _INTEGER,
        "shared memory": code.shared_cycles * a_row,
        "matrix units": code.count("HMMA") * a_row / card.matrix,
    }
    seconds = {what: each / (card.multiprocessors * card.clock * 1e9) for what, each in cycles.items()}
    seconds["memory"] = nbytes / (card.bandwidth * 1e9)
    limit = max(seconds, key=lambda what: seconds[what])
    dense = 4 * layout.k_dim / (card.bandwidth * 1e9)
    return {
        "name": pair_name(pair),
        "groups": groups,
        "card": card.name,
        "bytes_per_head_row": nbytes,
        "instructions_per_head_row": code.instructions * a_row,
        "registers": code.registers,
        "shared_bytes": code.shared,
        "limit": limit,
        "ms": 1e3 * seconds[limit] * BATCH * CONTEXT * layout.kv_heads,
        "share_of_bandwidth": seconds["memory"] / seconds[limit],
        "times_bf16": dense / seconds[limit],
    }


def format_predicted(data: dict[str, Any]) -> str:
    """As a Markdown table for each number of query heads a kv head, a line a type and card."""
    lines: list[str] = []
    for groups in dict.fromkeys(row["groups"] for row in data["rows"]):
        lines += [
            f"{data['note']}: decoding, batch {data['batch']}, {data['context']:,} tokens, {groups} query heads a kv head",
            "",
            "| types | card | bytes a row | instructions a row | registers | limit | ms | of bandwidth | times bf16 |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['name']} | {row['card']} | {row['bytes_per_head_row']} | {row['instructions_per_head_row']:.1f} | "
            f"{row['registers']} | {row['limit']} | {row['ms']:.2f} | {row['share_of_bandwidth']:.0%} | "
            f"{row['times_bf16']:.1f} |"
            for row in data["rows"]
            if row["groups"] == groups
        ]
    return "\n".join(lines + [f"left out: {each}" for each in data["left_out"]])
