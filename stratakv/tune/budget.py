"""What the user may spend: bytes a token, said in one of four ways."""

from __future__ import annotations

from dataclasses import dataclass

from stratakv.errors import UserError
from stratakv.profile import ModelGeometry, resolve
from stratakv.sizes import size_text


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
    memory: int | None = None,
    context: int | None = None,
) -> Budget:
    """The budget of exactly one way to say it; nothing given: uniform turbo4's bytes.

    profile: any profile text, whose bytes a token are the budget. memory, bytes, goes with context: a cache of that many tokens
    must fit. Raises UserError for two ways at once, and for what can't be a budget.
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
        return Budget(f"{size_text(memory)} at {context:,} tokens", memory, context)
    if bpv is not None:
        if not 0 < bpv <= 32:
            raise UserError(f"--bpv {bpv}: bits per value, between 0 and 32")
        return Budget(f"{bpv:g} bpv", int(bpv * geometry.values / 8))
    if bytes_per_token is not None:
        if bytes_per_token < 1:
            raise UserError(f"--bytes-per-token {bytes_per_token}: at least 1")
        return Budget(f"{bytes_per_token} bytes a token", bytes_per_token)
    text = "turbo4" if profile is None else profile
    return Budget(text, resolve(text, geometry).bytes_per_token)
