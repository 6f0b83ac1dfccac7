"""Made-up results of a comparison, for everything that is made from its JSON."""

from __future__ import annotations

from typing import Any

from stratakv.measure.metrics import METRICS
from stratakv.measure.verdicts import judge, pareto_front

TURBO4 = 3.0e-3

# name, bpv, KLD in 1e-3, half width of the relative interval
USUAL = [
    ("f16", 16.0, 0.0, 0.0),
    ("q8_0", 8.5, 0.01, 0.01),
    ("q4_0_rot", 4.5, 2.61, 0.05),
    ("turbo4", 4.125, 3.0, 0.0),
    ("turbo3", 3.125, 11.6, 0.2),
    ("mode 1", 7.04, 0.69, 0.05),
    ("mode 7", 4.19, 8.7, 0.2),
    ("edges3", 5.22, 2.9, 0.2),
]


def comparison(
    rows: list[tuple[str, float, float, float]] = USUAL, *, intervals: bool = True, far: bool = False
) -> dict[str, Any]:
    """A "stratakv/compare/1" against turbo4, which must be among the rows. far: with far predictions of twice the KLD."""
    made = [_row(*row, intervals=intervals) for row in rows]
    front = pareto_front([(row["bytes_per_token"], row["kld_mean"]) for row in made])
    reference = next(row for row in made if row["name"] == "turbo4")
    for row, on_front in zip(made, front, strict=True):
        kind, text = judge(row, reference, is_reference=row is reference)
        row.update(pareto=on_front, verdict_kind=kind, verdict=text)
    if far:
        for row in made:
            row["far"] = {name: value for name, value in row.items() if name not in ("name", "bpv", "bytes_per_token")}
            for name in ("kld_mean", "kld_diff"):
                ends = row[f"{name}_ci95"]
                row["far"] |= {name: 2 * row[name], f"{name}_ci95": ends and [2 * end for end in ends]}
    about = {"chunks": 4, "context": 2048, "words": "far: 4 contexts of 2,048 tokens, some words"}
    return {
        **({"far": about} if far else {}),
        "schema": "stratakv/compare/1",
        "model": {"name": "made-up", "fingerprint": "0" * 64},
        "text": {"name": "text.txt", "sha256": "1" * 64, "tokens": 9000, "tokens_scored": 4080},
        "context": 512,
        "chunk": 512,
        "chunks": 16 if intervals else 2,
        "compute_dtype": "float32",
        "reference": "turbo4",
        "warnings": [],
        "rows": made,
    }


def _row(name: str, bpv: float, milli: float, half: float, *, intervals: bool) -> dict[str, Any]:
    kld, size = milli / 1e3, round(bpv * 768)
    change = kld - TURBO4
    return {
        "name": name,
        "bpv": bpv,
        "bytes_per_token": size,
        "context_bytes": size * 512,
        "allocated_bytes": size * 512,
        "ppl": 60.0 + kld,
        "ppl_diff": kld,
        "ppl_diff_ci95": [kld - 0.005, kld + 0.005] if intervals else None,
        "kld_mean": kld,
        "kld_mean_ci95": [0.9 * kld, 1.1 * kld] if intervals else None,
        **{metric.field: kld if metric.unit == "nats" else 0.5 for metric in METRICS},
        "kld_median": kld / 2,
        "kld_p99": 8 * kld,
        "kld_max": 20 * kld,
        "top1": 0.95,
        "kld_diff": change,
        "kld_diff_ci95": [change - half * TURBO4, change + half * TURBO4] if intervals else None,
        "baseline": name == "f16",
        "warnings": [],
    }
