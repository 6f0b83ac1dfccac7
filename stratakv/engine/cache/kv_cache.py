"""The transformers cache whose every layer stores K and V in types of its own."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, Cache, get_layer_types_and_kwargs

from stratakv.engine.cache import hybrid  # noqa: F401, its kinds are known then
from stratakv.engine.cache.geometry import geometry_of
from stratakv.engine.cache.layers import PACKED, PackedLayer
from stratakv.engine.cache.sealing import Seals
from stratakv.engine.cache.steps import Steps
from stratakv.errors import UserError
from stratakv.profile import Profile, resolve


class KVCache(Cache):
    """A cache for `model(..., past_key_values=cache)` and `model.generate(..., past_key_values=cache)`.

    config: the model's config. profile: a Profile, or any text that `stratakv.resolve` takes ("turbo4", "q8_0/turbo4",
    "edges3", "first3,last3: k=q8_0 v=turbo4; rest: turbo4", a file). Layers without K and V per token keep their stock
    class. Raises UserError for a profile that doesn't fit the model.

    The attention implementation "stratakv" (`stratakv.use(model)`) reads the pages; with any other the model sees decoded
    tensors: right, but slower.
    """

    def __init__(self, config: PreTrainedConfig, profile: Profile | str) -> None:
        geometry = geometry_of(config)
        self.profile = resolve(profile, geometry) if isinstance(profile, str) else profile
        kinds, kwargs = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
        if len(self.profile.pairs) != len(geometry.kv_layers):
            raise UserError(
                f"profile {self.profile.name} is for {len(self.profile.pairs)} KV layers, the model has {len(geometry.kv_layers)}"
            )
        layers: list[Any] = []
        steps = Steps()
        for layer, kind, layer_kwargs in zip(geometry.layers, kinds, kwargs, strict=True):
            if layer.ordinal is None:
                layers.append(DYNAMIC_LAYER_TYPE_MAPPING[kind](**layer_kwargs))
                continue
            storage = self.profile.storages[layer.ordinal].for_layer(layer)
            fine, turn = storage.fine(layer), (layer.ordinal + 1) / len(geometry.kv_layers)
            seals = None if fine is None else Seals(storage.spans, storage.k, storage.v, turn)
            written, name = fine or storage, f"layer {layer.layer}"
            layers.append(PACKED[kind](name, written.k, written.v, **layer_kwargs, steps=steps, seals=seals))
        super().__init__(layers=layers)

    def nbytes(self) -> int:
        """Bytes allocated for packed K and V (the states of linear-attention layers are not counted)."""
        return sum(layer.nbytes for layer in self.layers if isinstance(layer, PackedLayer))
