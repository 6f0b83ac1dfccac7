"""Spans that are wished for, of a whole profile or of each layer, given to each layer as far as it can have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stratakv.errors import UserError
from stratakv.profile.geometry import LayerGeometry, ModelGeometry
from stratakv.profile.profile import Pair, ordinals_text
from stratakv.profile.spans import NONE, PAGE_TOKENS, Spans, spans_text
from stratakv.profile.storage import DECODED, LayerStorage

LayerSpans = Spans | tuple[Spans, ...]  # of all KV layers, or of each where they differ


def spread(spans: Spans, geometry: ModelGeometry, pairs: Sequence[Pair]) -> tuple[tuple[Spans, ...], tuple[str, ...]]:
    """The spans by KV ordinal, and warnings for layers that get fewer.

    Layers that slide have no first pages and at most their window's recent ones; layers whose attention gets decoded
    tensors (MLA), layers whose own types are as fine, and those whose head_dim the spans' type can't store, have none. UserError
    where no layer can have any.
    """
    return spread_each([spans] * len(pairs), geometry, pairs)


def spread_each(
    wishes: Sequence[Spans], geometry: ModelGeometry, pairs: Sequence[Pair]
) -> tuple[tuple[Spans, ...], tuple[str, ...]]:
    """The same, with a wish of its own for each KV layer."""
    found: list[Spans] = []
    fewer: dict[str, list[int]] = {}
    for ordinal, (wish, layer, pair) in enumerate(zip(wishes, geometry.kv_layers, pairs, strict=True)):
        fitted, why = fit(wish, layer, pair)
        found.append(fitted)
        if why:
            fewer.setdefault(why, []).append(ordinal)
    said = tuple(f"spans of KV layers {ordinals_text(ordinals)}: {why}" for why, ordinals in fewer.items())
    if any(wishes) and not any(found):
        finer = any(" as fine as " in why for why in fewer)
        todo = "give coarser types (-ctk, -ctv), spans of a finer type, or none" if finer else "leave them out"
        raise UserError(f"no layer can have the spans '{spans_text(wishes)}': {'; '.join(said)}: {todo}")
    return tuple(found), said


def fitted(wish: LayerSpans, geometry: ModelGeometry, pairs: Sequence[Pair]) -> tuple[Spans, ...]:
    """The same without words: nothing at all where no layer can have any."""
    wishes = of_each_layer(wish, len(pairs))
    return tuple(
        fit(spans, layer, pair)[0] for spans, layer, pair in zip(wishes, geometry.kv_layers, pairs, strict=True)
    )


def of_each_layer(wish: LayerSpans, layers: int) -> tuple[Spans, ...]:
    """By KV ordinal."""
    return wish if isinstance(wish, tuple) else (wish,) * layers


def layer_spans_text(wish: LayerSpans) -> str:
    """`Spans.text` of all layers', '' for none; '2, 5: recent 1 page turbo8, first 0 pages; rest: none' where they differ."""
    if not isinstance(wish, tuple):
        return wish.text()
    groups: dict[Spans, list[int]] = {}
    for ordinal, spans in enumerate(wish):
        groups.setdefault(spans, []).append(ordinal)
    rest = max(groups, key=lambda spans: len(ordinals_text(groups[spans])))
    said = {spans: spans.in_clause() if spans else "none" for spans in groups}
    clauses = [f"{ordinals_text(named)}: {said[spans]}" for spans, named in groups.items() if spans != rest]
    return "; ".join([*clauses, f"rest: {said[rest]}"])


def layer_spans_json(wish: LayerSpans) -> Any:
    """As `Spans.to_json`; a list by KV ordinal where they differ."""
    return [spans.to_json() for spans in wish] if isinstance(wish, tuple) else wish.to_json()


def layer_spans_from_json(data: Any) -> LayerSpans:
    """The reverse of `layer_spans_json`."""
    if isinstance(data, list):
        return tuple(Spans(**each) if each else NONE for each in data)
    return Spans(**data) if data else NONE


def fit(spans: Spans, layer: LayerGeometry, pair: Pair) -> tuple[Spans, str | None]:
    """What one layer can have of the spans, and why fewer."""
    if not spans or LayerStorage.of(pair, spans).refuses(layer) is None:
        return spans, None
    if not layer.reads_pages:
        return NONE, f"none, {DECODED}"
    storage = LayerStorage.of(pair, spans)
    try:
        fine = storage.fine(layer)
    except UserError as error:
        return NONE, f"none, {error}"
    if fine is not None and fine.names == storage.names:
        return NONE, f"none, {storage.names} is as fine as {spans.type}"
    if layer.window is None:
        return spans, None
    recent = min(spans.recent, layer.window // PAGE_TOKENS)
    fitted = Spans(recent, spans.recent_type) if recent else NONE
    if recent == spans.recent:
        return fitted, f"no first pages, they leave a window of {layer.window:,} tokens"
    return fitted, f"{fitted.text() or 'none'}, a window of {layer.window:,} tokens holds no more"
