"""What `judge` compared, KLD over bits a value, a panel for each model and text: a figure of docs/results.md.

python tools/judged_figure.py docs/results/real-*.judge.json -o docs/results/real-512.png
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stratakv.picture import GRID, INK, picture

# family: what it is called, colour, mark; drawn in this order
_FAMILIES = {
    "mode": ("modes of the fork", "#CC79A7", "v"),
    "rule": ("layer rules", "#E69F00", "s"),
    "uniform": ("uniform pairs", "#56B4E9", "o"),
    "permutation": ("permutations of the tuned", "#999999", "x"),
    "tuned": ("tuned", "#D55E00", "*"),
}


def draw(judgements: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A panel for each model and text, both axes shared along rows; the files of one panel are its budgets."""
    panels: dict[str, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for each in judgements:
        panels[each["model"]["name"]][Path(each["text"]["name"]).stem].extend(each["rows"])
    columns = max(map(len, panels.values()))
    with picture(path, (4.3 * columns, 3.6 * len(panels))) as figure:
        axes = figure.subplots(len(panels), columns, squeeze=False, sharey="row", sharex="row")
        for row, (model, texts) in zip(axes, panels.items(), strict=True):
            for panel, (text, rows) in zip(row, texts.items(), strict=False):
                for family, (label, colour, mark) in _FAMILIES.items():
                    mine = sorted((each["bpv"], 1e3 * each["kld_mean"]) for each in rows if each["family"] == family)
                    if not mine:
                        continue
                    size, line = (14, "-") if family == "tuned" else (5, "")
                    panel.plot(
                        *zip(*mine, strict=True), mark + line, color=colour, markersize=size, label=label, alpha=0.85
                    )
                panel.set_yscale("log")
                panel.set_title(f"{model}, {text}", color=INK, fontsize=9)
                panel.grid(color=GRID, linewidth=0.6)
                panel.set_axisbelow(True)
        axes[0][0].legend(fontsize=8, frameon=False)
        figure.supxlabel("bits a value")
        figure.supylabel("KLD, 1e-3 nats")


def main() -> None:
    """Draw what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judgement", nargs="+", metavar="NAME.judge.json")
    parser.add_argument("-o", "--output", required=True, type=Path)
    args = parser.parse_args()
    draw([json.loads(Path(name).read_text(encoding="utf-8")) for name in args.judgement], args.output)


if __name__ == "__main__":
    main()
