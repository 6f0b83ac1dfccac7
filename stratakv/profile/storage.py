"""How one layer stores its K and V, and the one place that computes its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stratakv.errors import UserError
from stratakv.kvtypes import KVType, kv_type
from stratakv.profile.geometry import LayerGeometry
from stratakv.profile.spans import NONE, PAGE_TOKENS, Spans

DECODED = "its attention gets decoded tensors instead of pages, so it has no spans"


@dataclass(frozen=True)
class LayerStorage:
    """The types of a KV layer. UserError from all that counts bytes where a type can't store the layer's head_dim.

    spans: the pages that are stored in `fine` instead.
    """

    k: KVType
    v: KVType
    spans: Spans = NONE

    @staticmethod
    def of(pair: tuple[str, str], spans: Spans = NONE) -> LayerStorage:
        """From the names of the types. UserError for an unknown one."""
        return LayerStorage(kv_type(pair[0]), kv_type(pair[1]), spans)

    def fine(self, layer: LayerGeometry) -> LayerStorage | None:
        """How the spans' pages are stored; None without spans. A side whose own type has as many bits keeps it."""
        if not self.spans:
            return None
        finer, (k_dim, v_dim) = kv_type(self.spans.type), layer.head_dim
        return LayerStorage(finer_of(self.k, finer, k_dim), finer_of(self.v, finer, v_dim))

    def for_layer(self, layer: LayerGeometry) -> LayerStorage:
        """The same, without spans where a window is so short that all it touches is fine: then in the finer types alone."""
        short = layer.window is not None and layer.window - 1 <= self.spans.recent * PAGE_TOKENS
        return (self.fine(layer) or self) if short else self

    @property
    def names(self) -> str:
        """The layer's own types: 'turbo4', 'q8_0/turbo4'."""
        return "/".join(dict.fromkeys((self.k.name, self.v.name)))

    def refuses(self, layer: LayerGeometry) -> str | None:
        """Why the layer can't have these spans, in words; None where it can."""
        spans, window = self.spans, layer.window
        if not spans:
            return None
        if not layer.reads_pages:
            return f"{DECODED}: leave '{spans.text()}' out"
        if window is not None and spans.first:
            return f"it keeps {window:,} tokens and drops its first page: first must be 0 pages, not {spans.first}"
        if window is not None and spans.recent * PAGE_TOKENS > window:
            return (
                f"{spans.recent} recent pages ({spans.recent * PAGE_TOKENS:,} tokens) are beyond its window of {window:,} "
                f"tokens: give at most {window // PAGE_TOKENS}"
            )
        try:
            fine = self.fine(layer)
        except UserError as error:
            return f"spans: {error}"
        if fine is not None and fine.names == self.names:
            return f"the spans' type {spans.type} is not finer than its own {self.names}: give one of more bits, or no spans"
        return None

    def token_bytes(self, layer: LayerGeometry) -> tuple[int, int]:
        """Bytes of one token's K and of its V outside of the spans, all kv heads together."""
        return side_bytes(self.k, layer, 0), side_bytes(self.v, layer, 1)

    def nbytes(self, layer: LayerGeometry, tokens: int) -> int:
        """Bytes of one sequence of so many tokens; sliding and chunked layers keep at most their window."""
        kept = tokens if layer.window is None else min(tokens, layer.window)
        fine = self.fine(layer)
        if fine is None:
            return kept * sum(self.token_bytes(layer))
        pages = self.spans.sealed(tokens)
        first, end = max(pages.start * PAGE_TOKENS, tokens - kept), pages.stop * PAGE_TOKENS
        sealed = max(0, end - first)
        return sealed * sum(self.token_bytes(layer)) + (kept - sealed) * sum(fine.token_bytes(layer))


def side_bytes(type_: KVType, layer: LayerGeometry, side: Literal[0, 1]) -> int:
    """Bytes of one token's K (side 0) or V (1) as a type, all kv heads together."""
    return layer.kv_heads * type_.nbytes(layer.head_dim[side])


def finer_of(own: KVType, other: KVType, head_dim: int) -> KVType:
    """The other type where it has more bits a value, else the own one."""
    return other if other.bits_per_value(head_dim) > own.bits_per_value(head_dim) else own
