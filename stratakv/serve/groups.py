"""Layers that keep the same tokens share block tables: one group for all full layers, one for each window."""

from __future__ import annotations

from dataclasses import dataclass

from stratakv.pages.footprint import page_bytes, pages_of
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.profile import Profile
from stratakv.profile.geometry import LayerGeometry


@dataclass(frozen=True)
class WindowGroup:
    """Layers with one block table. layers: (KV ordinal, geometry); page_bytes: of one page in all of them together."""

    kind: str  # full, sliding or chunked
    window: int | None
    layers: tuple[tuple[int, LayerGeometry], ...]
    page_bytes: int

    def first_visible(self, position: int) -> int:
        """The first token that the token at this position sees."""
        if self.window is None:
            return 0
        if self.kind == "chunked":
            return position // self.window * self.window
        return max(0, position - self.window + 1)

    def pages_for(self, tokens: int, chunk: int) -> int:
        """Pages that a sequence of this many tokens holds at most, while chunks of `chunk` tokens are computed."""
        return pages_of(tokens, self.window, chunk)


def window_groups(profile: Profile) -> list[WindowGroup]:
    """The groups of a model's KV layers, full layers first."""
    found: dict[tuple[str, int | None], list[tuple[int, LayerGeometry]]] = {}
    for ordinal, layer in enumerate(profile.geometry.kv_layers):
        kind: str = layer.role if layer.window is not None else "full"
        found.setdefault((kind, layer.window), []).append((ordinal, layer))
    groups = []
    for (kind, window), layers in sorted(found.items(), key=lambda item: (item[0][1] is not None, item[0][1] or 0)):
        nbytes = sum(page_bytes(layer, profile.storages[ordinal]) for ordinal, layer in layers)
        groups.append(WindowGroup(kind, window, tuple(layers), nbytes))
    return groups


def reserve(groups: list[WindowGroup], pages: int, slots: int, context: int, chunk: int) -> list[int]:
    """Pages of each group for sequences of so many pages together, `slots` at once, none longer than `context` tokens.

    A sequence's pages in a group with a window are some of those that it has in all: what `chunk` tokens and the window before
    them can touch.
    """
    return [pages if group.window is None else min(pages, slots * group.pages_for(context, chunk)) for group in groups]


def capacities(groups: list[WindowGroup], cache_bytes: int, slots: int, context: int, chunk: int) -> list[int]:
    """Pages of each group out of one budget.

    As `reserve` counts, for as many pages as fit. What is left when all slots hold `context` tokens is shared out in
    proportion, for prefixes. Where not even one sequence of `context` tokens fits beside windows for all slots, fewer of them
    get windows: then sequences wait for each other.
    """
    one = -(-context // PAGE_TOKENS)

    def nbytes(pages: int, at_once: int) -> int:
        counts = reserve(groups, pages, at_once, context, chunk)
        return sum(count * group.page_bytes for count, group in zip(counts, groups, strict=True))

    all_ = nbytes(slots * one, slots)
    if all_ <= cache_bytes:
        return [count * cache_bytes // all_ for count in reserve(groups, slots * one, slots, context, chunk)]
    for at_once in range(slots, 0, -1):
        low, high = 0, slots * one
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if nbytes(middle, at_once) <= cache_bytes else (low, middle)
        if low >= one:
            break
    return reserve(groups, low, at_once, context, chunk)
