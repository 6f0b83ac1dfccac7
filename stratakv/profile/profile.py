"""The immutable Profile: which KV layer stores its K and its V in which type, and what that costs in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from stratakv.errors import UserError
from stratakv.kvtypes import kv_type
from stratakv.profile.geometry import ModelGeometry
from stratakv.profile.spans import NONE, PAGE_TOKENS, Spans
from stratakv.profile.storage import LayerStorage

Pair = tuple[str, str]


@dataclass(frozen=True)
class Profile:
    """One (K type, V type) a KV layer, checked against the layer's head dims.

    pairs: by KV ordinal. warnings: what the user should know about how the text became these pairs, notes: what is no reason to
    worry; they belong to the resolving and are not stored in files. fingerprint: of the shapes of the model's weights, None when
    unknown. evidence: what was measured, JSON values only. compat_fork: resolved as the llama.cpp fork would, so tables show the
    fork's bytes too. spans: by KV ordinal, the pages in a finer type; () means none anywhere.

    Raises UserError for a model without KV layers, an unknown type, a head dim that a type cannot store, or spans that a layer
    cannot have.
    """

    name: str
    geometry: ModelGeometry
    pairs: tuple[Pair, ...]
    warnings: tuple[str, ...] = ()
    fingerprint: str | None = None
    evidence: Mapping[str, Any] | None = field(default=None, hash=False)
    compat_fork: bool = False
    spans: tuple[Spans, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        layers = self.geometry.kv_layers
        if not layers:
            raise UserError(
                f"model {self.geometry.name} has no layer with a KV cache: there is nothing to choose types for"
            )
        if len(self.pairs) != len(layers):
            raise ValueError(f"{len(self.pairs)} pairs for {len(layers)} KV layers")
        object.__setattr__(self, "spans", self.spans or (NONE,) * len(layers))
        if len(self.spans) != len(layers):
            raise ValueError(f"spans of {len(self.spans)} layers for {len(layers)} KV layers")
        for ordinal, (layer, pair) in enumerate(zip(layers, self.pairs, strict=True)):
            for side, name, head_dim in zip("KV", pair, layer.head_dim, strict=True):
                try:
                    kv_type(name).check(head_dim)
                except UserError as error:
                    raise UserError(f"KV layer {ordinal}, {side}: {error}") from None
            if problem := LayerStorage.of(pair, self.spans[ordinal]).refuses(layer):
                raise UserError(f"KV layer {ordinal}: {problem}")
        self.check_context(self.geometry.context)

    def check_context(self, tokens: int) -> None:
        """UserError where spans are longer than a context of so many tokens; 0: not known, so nothing is said."""
        pages = max((each.first + each.recent for each in self.spans), default=0)
        if 0 < tokens < pages * PAGE_TOKENS:
            raise UserError(
                f"spans of {pages} pages ({pages * PAGE_TOKENS:,} tokens) are longer than the context of {tokens:,} tokens: "
                f"first and recent together take at most {tokens // PAGE_TOKENS} pages of {PAGE_TOKENS} tokens"
            )

    @cached_property
    def storages(self) -> tuple[LayerStorage, ...]:
        """How the layers store K and V, by KV ordinal: what the pairs name."""
        return tuple(LayerStorage.of(pair, spans) for pair, spans in zip(self.pairs, self.spans, strict=True))

    def layer_bytes(self, ordinal: int) -> tuple[int, int]:
        """K and V bytes that one token takes in this KV layer, all its kv heads together."""
        return self.storages[ordinal].token_bytes(self.geometry.kv_layers[ordinal])

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes in all KV layers, outside of spans."""
        return sum(sum(self.layer_bytes(ordinal)) for ordinal in range(len(self.pairs)))

    @property
    def bpv(self) -> float:
        """Bits per value outside of spans, averaged over all stored values; norms, scales and padding counted."""
        return 8 * self.bytes_per_token / self.geometry.values

    def spans_bytes_at(self, context: int) -> int:
        """How many of `bytes_at` are there for the spans: more than the layers' own types would take."""
        layers = zip(self.pairs, self.geometry.kv_layers, strict=True)
        return self.bytes_at(context) - sum(LayerStorage.of(pair).nbytes(layer, context) for pair, layer in layers)

    def bytes_per_token_at(self, context: int) -> int:
        """Bytes a token with what spans take at so many tokens shared out among them, rounded up."""
        return self.bytes_per_token - (-self.spans_bytes_at(context) // context)

    def bpv_at(self, context: int) -> float:
        """Bits per value of `bytes_per_token_at`."""
        return self.bpv * self.bytes_per_token_at(context) / self.bytes_per_token

    def seals_at(self, context: int) -> bool:
        """Whether any of so many tokens lies outside of the spans in any layer; if not, the layers' own types are never read."""
        layers = zip(self.storages, self.geometry.kv_layers, strict=True)
        sealing = [storage for storage, layer in layers if storage.for_layer(layer) == storage]
        return any(storage.spans.sealed(context) for storage in sealing)

    def bytes_at(self, context: int) -> int:
        """Bytes of one sequence of `context` tokens; sliding and chunked layers keep at most their window. Spans count."""
        layers = zip(self.storages, self.geometry.kv_layers, strict=True)
        return sum(storage.nbytes(layer, context) for storage, layer in layers)


def pair_text(pair: Pair) -> str:
    """How a pair is written: 'turbo4' when K and V are equal, else 'q8_0/turbo4'."""
    k, v = pair
    return k if k == v else f"{k}/{v}"


def ordinals_text(ordinals: Iterable[int]) -> str:
    """Layer numbers in words, runs folded: [0, 1, 2, 5] is '0-2, 5'."""
    runs: list[list[int]] = []
    for ordinal in sorted(ordinals):
        if runs and runs[-1][1] == ordinal - 1:
            runs[-1][1] = ordinal
        else:
            runs.append([ordinal, ordinal])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
