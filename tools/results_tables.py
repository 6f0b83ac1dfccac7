"""Markdown tables from the JSON of `stratakv compare`: what docs/results.md shows.

python tools/results_tables.py docs/results/*.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEAD = (
    "| profile | bpv | bytes/token | PPL - f16 | KLD, 1e-3 nats | median | p99 | top-1 | against {reference} |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---|"
)


def table(result: dict[str, Any]) -> str:
    """One table, a row a profile in the order of the run; a star marks the Pareto front over bytes and KLD."""
    lines = [HEAD.format(reference=result["reference"])]
    for row in result["rows"]:
        star = " *" if row["pareto"] else ""
        lines.append(
            f"| {row['name']}{star} | {row['bpv']:.3f} | {row['bytes_per_token']:,} | "
            f"{_interval(row['ppl_diff'], row['ppl_diff_ci95'], 1.0, '+.2f')} | "
            f"{_interval(row['kld_mean'], row['kld_mean_ci95'], 1e3, '.3g')} | {row['kld_median'] * 1e3:.3g} | "
            f"{row['kld_p99'] * 1e3:.3g} | {row['top1']:.1%} | {row['verdict']} |"
        )
    return "\n".join(lines)


def _interval(value: float, ci: list[float] | None, factor: float, form: str) -> str:
    text = format(value * factor, form)
    return text if ci is None else f"{text} [{ci[0] * factor:{form}}, {ci[1] * factor:{form}}]"


def main() -> None:
    """Print the tables of the files given."""
    for path in map(Path, sys.argv[1:]):
        result = json.loads(path.read_text(encoding="utf-8"))
        text = result["text"]
        print(f"### {path.stem}\n\n{result['chunks']} contexts of {result['context']} tokens, {text['name']}\n")
        print(table(result) + "\n")


if __name__ == "__main__":
    main()
