"""What a cache will take before one exists: whole pages, layer by layer. Plain arithmetic."""

from __future__ import annotations

from typing import Literal

from stratakv.pages.layout import PAGE_TOKENS
from stratakv.profile import LayerGeometry, LayerStorage, Profile
from stratakv.profile.spans import Spans

PIECE = 512  # tokens of a prompt in one forward call: what `serve -b` and `generate` take
Part = Literal["whole", "fine", "sealed"]  # which of a layer's pages: with spans the fine or the sealed ones
LONGEST = 1 << 40  # tokens; a model whose layers are all windowed never grows to it


def allocated_bytes(profile: Profile, context: int, piece: int = PIECE, sequences: int = 1) -> int:
    """The most bytes of pages that one sequence takes until it has `context` tokens: `piece` of them in a forward call.

    sequences: so many at once, which share the pages and the piece: one alone may use all, as in a server.

    Layers that keep every token take whole pages of them. Sliding and chunked layers free pages that lie wholly before the
    window, so they take at most the pages that a window and a piece of a prompt can touch. Layers with spans take fine pages for
    these, and sealed ones for the rest.
    """
    layers = zip(profile.storages, profile.geometry.kv_layers, strict=True)
    return sum(allocated_in(layer, storage, context, piece, sequences) for storage, layer in layers)


def allocated_in(
    layer: LayerGeometry, storage: LayerStorage, context: int, piece: int = PIECE, sequences: int = 1
) -> int:
    """The same of one layer."""
    storage, pages = storage.for_layer(layer), sequences * -(-context // PAGE_TOKENS)

    def count(part: Part) -> int:
        return reserved_pages(part, pages, sequences, pages * PAGE_TOKENS, layer.window, storage.spans, piece)

    if not storage.spans:
        return count("whole") * page_bytes(layer, storage)
    return count("sealed") * page_bytes(layer, storage) + count("fine") * fine_page_bytes(layer, storage)


def page_bytes(layer: LayerGeometry, storage: LayerStorage) -> int:
    """Bytes of one page of a layer in its own types: all pages, or the sealed ones of a layer with spans."""
    return PAGE_TOKENS * sum(storage.token_bytes(layer))


def fine_page_bytes(layer: LayerGeometry, storage: LayerStorage) -> int:
    """Bytes of one page of the layer's spans; 0 without spans."""
    fine = storage.fine(layer)
    return 0 if fine is None else page_bytes(layer, fine)


def longest_context(profile: Profile, memory: int, sequences: int = 1) -> int:
    """The most tokens of each of so many sequences whose pages fit into `memory` bytes; 0 when not even one page does.

    LONGEST where no length is too long, all layers being windowed.
    """
    low, high = 0, LONGEST
    while low < high:
        middle = (low + high + 1) // 2
        if allocated_bytes(profile, middle, sequences=sequences) <= memory:
            low = middle
        else:
            high = middle - 1
    return low


def pages_of(context: int, window: int | None, piece: int = PIECE) -> int:
    """The most pages that one sequence takes in a layer until it has `context` tokens.

    window: tokens that a token sees, None for full layers. piece: tokens in a forward call: the first of them still sees a
    window before it.
    """
    pages = -(-context // PAGE_TOKENS)
    return pages if window is None else min(pages, (window + piece - 1 + PAGE_TOKENS - 2) // PAGE_TOKENS + 1)


def fine_pages_of(context: int, window: int | None, spans: Spans, piece: int = PIECE) -> int:
    """The fine ones of a layer with spans: those of the spans, and those of a piece."""
    return min(pages_of(context, window, piece), spans.pages + (piece + PAGE_TOKENS - 2) // PAGE_TOKENS)


def sealed_pages_of(context: int, window: int | None, spans: Spans, piece: int = PIECE) -> int:
    """The sealed ones. A page is sealed before it leaves its span, and there twice until then."""
    outside = -(-context // PAGE_TOKENS) - spans.first - spans.recent
    return max(0, min(outside, pages_of(context, window, piece)))


def reserved_pages(
    part: Part, pages: int, slots: int, context: int, window: int | None, spans: Spans, piece: int = PIECE
) -> int:
    """Pages of this part for sequences of so many pages together, `slots` at once, none longer than `context` tokens.

    A sequence's pages in a layer with a window are some of those that it has in all: what `piece` tokens and the window
    before them can touch. Fine pages are what each holds, and those of a step's prompts.
    """
    if window is not None:
        return min(pages, slots * most_pages(part, context, window, spans, piece))
    if part == "fine":
        return min(pages, slots * spans.pages + (piece + slots * (PAGE_TOKENS - 2)) // PAGE_TOKENS)
    if part == "sealed":  # the fewest sequences, the longest there are, have the fewest pages in spans
        longest, fine = max(1, -(-context // PAGE_TOKENS)), spans.first + spans.recent
        whole, rest = divmod(pages, longest)
        return whole * max(0, longest - fine) + max(0, rest - fine)
    return pages


def most_pages(part: Part, context: int, window: int | None, spans: Spans, piece: int = PIECE) -> int:
    """Pages of this part that one sequence of `context` tokens takes at most."""
    if part == "whole":
        return pages_of(context, window, piece)
    return (fine_pages_of if part == "fine" else sealed_pages_of)(context, window, spans, piece)
