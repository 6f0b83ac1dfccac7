"""A profile as vLLM's ranks get it: plain data in its configuration, so that no host but the first one reads a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from stratakv.errors import UserError
from stratakv.kvtypes import kv_type
from stratakv.profile import LayerGeometry, LayerStorage, ModelGeometry, Profile
from stratakv.profile.profile import ordinals_text
from stratakv.profile.spans import spans_text


class Built(NamedTuple):
    """A layer as a rank built it. kv_heads: of this rank."""

    head_dim: tuple[int, int]
    kv_heads: int


@dataclass(frozen=True)
class Assignment:
    """Which layer stores what. name: of the profile. layers: those with a cache of their own, of the whole model.
    pairs: their K and V types. model: its name, for messages."""

    name: str
    model: str
    layers: tuple[LayerGeometry, ...]
    pairs: tuple[tuple[str, str], ...]

    @staticmethod
    def of(profile: Profile) -> Assignment:
        """A checked profile's. UserError for what vLLM's blocks can't hold."""
        if text := spans_text(profile.spans):
            raise UserError(
                f"profile {profile.name}: vLLM writes a token once, into blocks of one size a layer, so finer pages that are "
                f"sealed later ('{text}') have no place there: give a profile without spans"
            )
        return Assignment(profile.name, profile.geometry.name, profile.geometry.kv_layers, profile.pairs)

    def to_json(self) -> dict[str, Any]:
        """Plain data, of which `from_json` makes the same assignment."""
        rows = [{**asdict(layer), "k": k, "v": v} for layer, (k, v) in zip(self.layers, self.pairs, strict=True)]
        return {"profile": self.name, "model": self.model, "layers": rows}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Assignment:
        """See `to_json`."""
        rows = [dict(row) for row in data["layers"]]
        pairs = tuple((row.pop("k"), row.pop("v")) for row in rows)
        layers = tuple(LayerGeometry(**{**row, "head_dim": tuple(row["head_dim"])}) for row in rows)
        return Assignment(data["profile"], data["model"], layers, pairs)

    @cached_property
    def _ordinals(self) -> dict[int, int]:
        return {layer.layer: ordinal for ordinal, layer in enumerate(self.layers)}

    def storage(self, layer: int) -> LayerStorage:
        """How the model's layer of this number stores K and V. UserError where it has no cache by the assignment."""
        if layer not in self._ordinals:
            raise UserError(
                f"profile {self.name} gives {self.model}'s layer {layer} nothing, but vLLM caches its K and V: it has types for "
                f"the layers {ordinals_text(self._ordinals)}"
            )
        k, v = self.pairs[self._ordinals[layer]]
        return LayerStorage(kv_type(k), kv_type(v))

    def vector_bytes(self, layer: int, head_dim: tuple[int, int]) -> int:
        """Bytes of one token's K and V of one kv head of this layer."""
        storage = self.storage(layer)
        return storage.k.nbytes(head_dim[0]) + storage.v.nbytes(head_dim[1])

    def on_rank(
        self, name: str, stage: Iterable[int], ranks: int, found: Mapping[int, Built], context: int = 0
    ) -> Profile:
        """What one rank stores, as a profile of its own part of the model.

        stage: layers of its pipeline stage. ranks: of tensor parallelism, which share kv heads out (a head that is too few for
        them is on several). found: the layers with a cache that it built, UserError where these are others than assigned.
        context: tokens of the longest sequence, 0 for not known.
        """
        expected = [layer for layer in self.layers if layer.layer in set(stage)]
        if [layer.layer for layer in expected] != sorted(found):
            raise UserError(
                f"profile {self.name} has types for {_layers(layer.layer for layer in expected)} of this pipeline stage, vLLM "
                f"built {_layers(found)} with a cache"
            )
        layers = []
        for ordinal, layer in enumerate(expected):
            own = Built(layer.head_dim, max(1, layer.kv_heads // ranks))
            if found[layer.layer] != own:
                raise UserError(
                    f"profile {self.name} is for {own.kv_heads} kv heads of {own.head_dim} in layer {layer.layer}, vLLM has "
                    f"{found[layer.layer].kv_heads} of {found[layer.layer].head_dim}"
                )
            layers.append(replace(layer, ordinal=ordinal, kv_heads=own.kv_heads))
        pairs = tuple(self.pairs[self._ordinals[layer.layer]] for layer in layers)
        return Profile(self.name, ModelGeometry(f"{self.model}, {name}", tuple(layers), context), pairs)


def _layers(numbers: Iterable[int]) -> str:
    text = ordinals_text(numbers)
    return f"layers {text}" if text else "no layer"
