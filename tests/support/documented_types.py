"""The table of types in docs/kv-types.md: what the code has to keep."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kv-types.md"


class Row(NamedTuple):
    """bytes: of a block. bits: of a value at head_dim 128 and 64; errors: relative mean squared ones at the same."""

    bytes: int
    bits: tuple[float, float]
    errors: tuple[float, float]


def documented() -> dict[str, Row]:
    """By name, in the table's order."""
    found = {}
    for name, rest in re.findall(r"^\| `(\w+)` \|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        _, nbytes, *numbers = (cell.strip() for cell in rest.split("|"))
        at_128, at_64, error_128, error_64 = map(float, numbers[:4])
        found[name] = Row(int(nbytes), (at_128, at_64), (error_128, error_64))
    return found
