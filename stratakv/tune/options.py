"""From a table of damages to what each layer may store: sizes from the types' arithmetic, constraints applied."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from stratakv.errors import UserError
from stratakv.kvtypes import kv_type
from stratakv.pages.footprint import pages_of
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.profile import LayerGeometry, ModelGeometry
from stratakv.profile.profile import Pair
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
) -> list[Options]:
    """The allocator's input, by KV ordinal.

    damages: KLD in nats of each pair that is known, by KV ordinal. types: only these. pairs: only these in every layer (what
    a target can express). floors: by ordinal the types that K and V may not go below in bytes. Sizes are bytes a token; with
    a `context`, bytes of the pages of one sequence of so many tokens, of which sliding and chunked layers keep what a window
    touches. Raises UserError where a constraint leaves a layer nothing.
    """
    layers = geometry.kv_layers
    if len(damages) != len(layers):
        raise ValueError(f"damages of {len(damages)} layers, the model has {len(layers)}")
    beyond = [ordinal for ordinal in floors or {} if not 0 <= ordinal < len(layers)]
    if beyond:
        raise UserError(f"a floor for KV layer {beyond[0]}: the model has KV layers 0 to {len(layers) - 1}")
    found = []
    for ordinal, (layer, known) in enumerate(zip(layers, damages, strict=True)):
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
        sizes = tuple(size_of(layer, pair, context) for pair in kept)
        found.append(Options(tuple(kept), sizes, tuple(float(known[pair]) for pair in kept)))
    return found


def size_of(layer: LayerGeometry, pair: Pair, context: int | None = None) -> int:
    """Bytes of a layer with this pair: of one token, or of all pages of one sequence of `context` tokens."""
    kept = 1 if context is None else PAGE_TOKENS * pages_of(context, layer.window)
    return kept * layer.kv_heads * sum(_vector_bytes(pair, layer))


def _vector_bytes(pair: Pair, layer: LayerGeometry) -> tuple[int, int]:
    (k, v), (k_dim, v_dim) = pair, layer.head_dim
    return kv_type(k).nbytes(k_dim), kv_type(v).nbytes(v_dim)


def _not_below(pair: Pair, floor: Pair, layer: LayerGeometry) -> bool:
    return all(
        size >= least for size, least in zip(_vector_bytes(pair, layer), _vector_bytes(floor, layer), strict=True)
    )
