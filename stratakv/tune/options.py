"""From a table of damages to what each layer may store: sizes from the types' arithmetic, constraints applied."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from stratakv.errors import UserError
from stratakv.pages.footprint import allocated_in
from stratakv.profile import LayerGeometry, LayerStorage, ModelGeometry
from stratakv.profile.profile import Pair
from stratakv.profile.spans import NONE, Spans
from stratakv.profile.spread import LayerSpans, fit, of_each_layer
from stratakv.tune.allocate import Options

Damages = Sequence[Mapping[Pair, float]]


def options_for(
    geometry: ModelGeometry,
    damages: Damages,
    *,
    types: Collection[str] | None = None,
    pairs: Collection[Pair] | None = None,
    floors: Mapping[int, Pair] | None = None,
    context: int | None = None,
    spans: LayerSpans = NONE,
) -> list[Options]:
    """The allocator's input, by KV ordinal.

    damages: KLD in nats of each pair that is known, by KV ordinal. types: only these. pairs: only these in every layer (what
    a target can express). floors: by ordinal the types that K and V may not go below in bytes. Sizes are bytes a token; with
    a `context`, bytes of the pages of one sequence of so many tokens, of which sliding and chunked layers keep what a window
    touches, and `spans` count. Raises UserError where a constraint leaves a layer nothing.
    """
    layers = geometry.kv_layers
    if len(damages) != len(layers):
        raise ValueError(f"damages of {len(damages)} layers, the model has {len(layers)}")
    beyond = [ordinal for ordinal in floors or {} if not 0 <= ordinal < len(layers)]
    if beyond:
        raise UserError(f"a floor for KV layer {beyond[0]}: the model has KV layers 0 to {len(layers) - 1}")
    found = []
    wishes = of_each_layer(spans, len(layers))
    for ordinal, (layer, known, wish) in enumerate(zip(layers, damages, wishes, strict=True)):
        floor = (floors or {}).get(ordinal)
        kept = [
            pair
            for pair in known
            if (types is None or set(pair) <= set(types))
            and (pairs is None or pair in pairs)
            and (floor is None or _not_below(pair, floor, layer))
        ]
        if not kept:
            raise UserError(
                f"KV layer {ordinal}: no measured pair of types is allowed: allow more types, or a lower floor"
            )
        sizes = tuple(size_of(layer, pair, context, wish) for pair in kept)
        found.append(Options(tuple(kept), sizes, tuple(float(known[pair]) for pair in kept)))
    return found


def size_of(layer: LayerGeometry, pair: Pair, context: int | None = None, spans: Spans = NONE) -> int:
    """Bytes of a layer with this pair: of one token outside of spans, or of all pages of one sequence of `context` tokens.

    spans: as far as the layer can have them.
    """
    return _size(replace(layer, layer=0, ordinal=0), pair, context, spans)


@lru_cache(maxsize=1 << 16)
def _size(layer: LayerGeometry, pair: Pair, context: int | None, spans: Spans) -> int:
    """Of layers that differ only in their numbers once: a model has few shapes, an allocator asks for all pairs of types."""
    storage = LayerStorage.of(pair, fit(spans, layer, pair)[0])
    return sum(storage.token_bytes(layer)) if context is None else allocated_in(layer, storage, context)


def _not_below(pair: Pair, floor: Pair, layer: LayerGeometry) -> bool:
    sizes, least = (LayerStorage.of(each).token_bytes(layer) for each in (pair, floor))
    return sizes[0] >= least[0] and sizes[1] >= least[1]
