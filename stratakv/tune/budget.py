"""What the user may spend: bytes a token, said in one of four ways."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stratakv.errors import UserError
from stratakv.profile import ModelGeometry, resolve

_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """size: bytes a token, or with a context bytes of one sequence of so many tokens. text: as the user said it."""

    text: str
    size: int
    context: int | None = None


def budget_from(
    geometry: ModelGeometry,
    *,
    profile: str | None = None,
    bpv: float | None = None,
    bytes_per_token: int | None = None,
    memory: str | None = None,
    context: int | None = None,
) -> Budget:
    """The budget of exactly one way to say it; nothing given: uniform turbo4's bytes.

    profile: any profile text, whose bytes a token are the budget. memory goes with context: a cache of that many tokens must
    fit. Raises UserError for two ways at once, and for what can't be a budget.
    """
    given = [
        name
        for name, value in (
            ("--budget", profile),
            ("--bpv", bpv),
            ("--bytes-per-token", bytes_per_token),
            ("--memory", memory),
        )
        if value is not None
    ]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} were given: one budget, please")
    if (memory is None) != (context is None):
        raise UserError("--memory and --context go together: a cache of how many tokens must fit into how many bytes")
    if memory is not None and context is not None:
        if context < 1:
            raise UserError(f"--context {context}: at least 1 token")
        return Budget(f"{memory} at {context} tokens", parse_size(memory), context)
    if bpv is not None:
        if not 0 < bpv <= 32:
            raise UserError(f"--bpv {bpv}: bits per value, between 0 and 32")
        values = sum(layer.kv_heads * sum(layer.head_dim) for layer in geometry.kv_layers)
        return Budget(f"{bpv:g} bpv", int(bpv * values / 8))
    if bytes_per_token is not None:
        if bytes_per_token < 1:
            raise UserError(f"--bytes-per-token {bytes_per_token}: at least 1")
        return Budget(f"{bytes_per_token} bytes a token", bytes_per_token)
    text = profile or "turbo4"
    return Budget(text, resolve(text, geometry).bytes_per_token)


def parse_size(text: str) -> int:
    """'2GiB', '512 MB' or a number of bytes. Raises UserError."""
    match = _SIZE.fullmatch(text.strip())
    if not match or match[2].lower() not in _UNITS:
        raise UserError(f"--memory {text}: write a size such as 2GiB, 512MiB or 800MB")
    return int(float(match[1]) * _UNITS[match[2].lower()])
