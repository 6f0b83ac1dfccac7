"""Layers that keep the same tokens share block tables: one group for all full layers, one for each window.

Where layers have spans, their pages are two groups, each with tables and ids of its own: fine pages, which new tokens are written
to, and sealed ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from stratakv.kernels.spans import due
from stratakv.pages.footprint import Part, most_pages, page_bytes, reserved_pages
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.profile import LayerStorage, Profile
from stratakv.profile.geometry import LayerGeometry, Role, first_visible, next_border
from stratakv.profile.spans import NONE, Spans


@dataclass(frozen=True)
class WindowGroup:
    """Layers with one block table. layers: (KV ordinal, geometry); page_bytes: of one page in all of them together.

    part: which of the layers' pages: with spans the fine or the sealed ones.
    """

    kind: Role
    window: int | None
    layers: tuple[tuple[int, LayerGeometry], ...]
    page_bytes: int
    part: Part = "whole"
    spans: Spans = NONE

    def storage(self, profile: Profile, ordinal: int) -> LayerStorage:
        """How a layer's pages of this group store K and V."""
        layer = profile.geometry.kv_layers[ordinal]
        storage = profile.storages[ordinal].for_layer(layer)
        return (storage.fine(layer) if self.part == "fine" else None) or LayerStorage(storage.k, storage.v)

    def first_visible(self, position: int) -> int:
        """The first token that the token at this position sees."""
        return first_visible(self.kind, self.window, position)

    def next_border(self, position: int) -> int | None:
        """Where a piece of a prompt that begins here has to end at the latest, if anywhere."""
        return next_border(self.kind, self.window, position)

    def needs(self, start: int, end: int) -> Iterable[int]:
        """The pages of a sequence that computing its tokens start .. end - 1 takes."""
        first, block = self.first_visible(start) // PAGE_TOKENS, (end - 1) // PAGE_TOKENS
        if self.part == "sealed":
            ready = block + 1 - self.spans.recent if self.spans.recent else end // PAGE_TOKENS
            return range(max(first, self.spans.first), ready)
        if self.part == "whole":
            return range(first, block + 1)
        recent = max(first, start // PAGE_TOKENS - self.spans.recent, self.spans.first)
        return (*range(first, min(self.spans.first, block + 1)), *range(recent, block + 1))

    def keeps(self, index: int, position: int) -> bool:
        """Whether the token at this position, or a later one, sees this page, one before its own, in this group."""
        if index < self.first_visible(position) // PAGE_TOKENS:
            return False
        recent = index < self.spans.first or index >= position // PAGE_TOKENS - self.spans.recent
        return self.part != "fine" or recent

    def prefix(self, pages: int) -> Iterable[int]:
        """The pages that a sequence has to hold before it goes on after so many whole pages."""
        first = self.first_visible(pages * PAGE_TOKENS) // PAGE_TOKENS
        if self.part == "whole":
            return range(first, pages)
        edge = max(pages - self.spans.recent, self.spans.first)
        if self.part == "sealed":
            return range(max(first, self.spans.first), pages - self.spans.recent)
        return (*range(first, min(self.spans.first, pages)), *range(max(first, edge), pages))

    def reaches(self, missing: int) -> int:
        """After how many whole pages a sequence may go on where this page is the first that isn't there."""
        return missing + (self.spans.recent if self.part == "sealed" else 0)

    def complete(self, tokens: int) -> int:
        """The pages of a sequence of so many computed tokens that don't change any more: those before this one."""
        return due(self.spans, tokens, 1.0) if self.part == "sealed" else tokens // PAGE_TOKENS

    def pages_for(self, tokens: int, chunk: int) -> int:
        """Pages that a sequence of this many tokens holds at most, while chunks of `chunk` tokens are computed."""
        return most_pages(self.part, tokens, self.window, self.spans, chunk)

    def reserve(self, pages: int, slots: int, context: int, chunk: int) -> int:
        """Pages for sequences of so many pages together, `slots` at once, none longer than `context` tokens."""
        return reserved_pages(self.part, pages, slots, context, self.window, self.spans, chunk)

    def together(self, count: int, context: int) -> int:
        """The inverse of `reserve` for a group without a window that isn't of fine pages, and some of its own."""
        if self.part == "whole":
            return count
        longest, spans = -(-context // PAGE_TOKENS), self.spans.first + self.spans.recent
        whole, rest = divmod(count, max(1, longest - spans))
        return whole * longest + (rest + spans if rest else 0)


def window_groups(profile: Profile) -> list[WindowGroup]:
    """The groups of a model's KV layers, full layers first, fine pages after sealed ones."""
    found: dict[tuple[Role, int | None, Spans], list[tuple[int, LayerGeometry]]] = {}
    for ordinal, layer in enumerate(profile.geometry.kv_layers):
        kind: Role = layer.role if layer.window is not None else "full"
        spans = profile.storages[ordinal].for_layer(layer).spans
        found.setdefault((kind, layer.window, spans), []).append((ordinal, layer))
    groups = []
    for (kind, window, spans), layers in sorted(
        found.items(), key=lambda item: (item[0][1] is not None, item[0][1] or 0)
    ):
        parts: tuple[Part, ...] = ("sealed", "fine") if spans else ("whole",)
        for part in parts:
            group = WindowGroup(kind, window, tuple(layers), 0, part, spans)
            nbytes = sum(page_bytes(layer, group.storage(profile, ordinal)) for ordinal, layer in layers)
            groups.append(WindowGroup(kind, window, tuple(layers), nbytes, part, spans))
    return groups


def reserve(groups: list[WindowGroup], pages: int, slots: int, context: int, chunk: int) -> list[int]:
    """Pages of each group for sequences of so many pages together, see WindowGroup."""
    return [group.reserve(pages, slots, context, chunk) for group in groups]


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
