"""Sizes as people write them: 2GiB of memory, 128k of tokens. Strict: a number without a unit of memory is refused."""

from __future__ import annotations

import re

from stratakv.errors import UserError

_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_MOST_MEMORY, _MOST_TOKENS = 2**50, 2**40  # far beyond any machine and any model: a slip of the finger
_TOKENS = {"": 1, "k": 1024, "m": 1024**2}


def parse_memory(text: str, option: str) -> int:
    """Bytes of '2GiB', '1.5 GB', '512MiB'. Raises UserError naming the option."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?B)", text.strip(), re.IGNORECASE | re.ASCII)
    size = float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
    if not 0.5 < size <= _MOST_MEMORY:
        raise UserError(
            f"{option} {text!r}: a positive size with its unit: KiB, MiB, GiB, TiB (of 1,024) or KB, MB, GB, TB (of 1,000), "
            "such as 2GiB, 1024TiB at most"
        )
    return round(size)


def parse_tokens(text: str, option: str) -> int:
    """Tokens of '131072', '128k' or '1m' (of 1,024). Raises UserError naming the option."""
    found = re.fullmatch(r"(\d{1,15})([km]?)", text.strip(), re.IGNORECASE | re.ASCII)
    tokens = int(found[1]) * _TOKENS[found[2].lower()] if found else 0
    if not 1 <= tokens <= _MOST_TOKENS:
        raise UserError(
            f"{option} {text!r}: a positive number of tokens, k and m for 1,024 and 1,024 k of them, such as 128k, 2^40 at most"
        )
    return tokens
