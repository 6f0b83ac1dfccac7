"""Damage of every layer, side and type for a model that can't be differentiated: forward passes alone.

A layer runs again with the quantization error of one type in its K or in its V. How much of its output that changes, as a
share of squares, says how the layers compare; the KLD of the type in all layers, measured, says how much all of it is; the
types' own squared errors say how they compare. What later layers do to an error is left out, so it is rougher than gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.kernels.encode import encode
from stratakv.kvtypes import kv_type
from stratakv.measure.divergence import Floats
from stratakv.profile import Profile
from stratakv.tune.layers import chain
from stratakv.tune.replay import Replay

FORWARD_PASSES = 5  # two of the whole model, one of all layers, and one for each side's errors
_BITS = 4.25  # of the type whose errors are tried, about


@torch.no_grad()
def forward_damage(loaded: LoadedModel, ids: torch.Tensor, types: Sequence[str]) -> Floats:
    """Predicted KLD in nats a scored prediction when one layer's K or V alone is stored as a type, all else exact.

    ids: int64 [context]. Returns float64 [kv_layers, 2 (K, V), types]. UserError for a model whose layers can't be run by
    themselves.
    """
    geometry = loaded.geometry.kv_layers
    dim = geometry[0].head_dim[0]
    tried = min(types, key=lambda name: abs(kv_type(name).bits_per_value(dim) - _BITS))
    ordinals = {layer.layer: ordinal for ordinal, layer in enumerate(geometry)}
    caches = _Disturbed(loaded.model.config, ordinals, types, tried)
    links = chain(loaded, ids[None].to(loaded.model.device), caches.new())
    if links is None:
        raise UserError(
            f"{loaded.name} can be neither differentiated nor run layer by layer, so layers can't be compared: "
            "give one pair of types to all of them"
        )
    share = np.zeros((len(geometry), 2))
    outs = [*(call.x for call in links.calls[1:]), links.hidden]
    for index, (call, out) in enumerate(zip(links.calls, outs, strict=True)):
        for side in range(2) if index in ordinals else ():
            changed = call.again(call.x, caches.new(side)) - out
            share[ordinals[index], side] = float(changed.double().square().sum() / out.double().square().sum())
    of_tried = caches.errors[..., types.index(tried), None]
    damage = share[..., None] * np.divide(caches.errors, of_tried, out=np.zeros_like(caches.errors), where=of_tried > 0)
    uniform = Profile("", loaded.geometry, ((tried, tried),) * len(geometry))
    found: Floats = damage * (float(Replay(loaded, ids[None]).kld(uniform).mean()) / (share.sum() or 1.0))
    return found


class _Disturbed:
    """Makes caches that give back what they are given, with errors of the type `tried` in one side when asked to.

    side: 0 for K, 1 for V, None for neither. errors: squared, summed, [kv_layers, 2, types].
    """

    def __init__(self, config: Any, ordinals: dict[int, int], types: Sequence[str], tried: str) -> None:
        self.config, self.ordinals, self.types, self.tried = config, ordinals, types, tried
        self.side: int | None = None
        self.errors = np.zeros((len(ordinals), 2, len(types)))

    def new(self, side: int | None = None) -> Any:
        """One that is empty, with errors in that side."""
        self.side = side
        cache: Any = DynamicCache(config=self.config)
        for index, ordinal in self.ordinals.items():
            cache.layers[index].update = partial(self._update, ordinal)
        return cache

    def _update(self, ordinal: int, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
        pair = [key, value]
        if self.side is None:
            self.errors[ordinal] = [[float(_error(t, x).double().square().sum()) for t in self.types] for x in pair]
        else:
            pair[self.side] = pair[self.side] + _error(self.tried, pair[self.side])
        return pair[0], pair[1]


def _error(name: str, x: torch.Tensor) -> torch.Tensor:
    type_ = kv_type(name)
    return (type_.decode(encode(type_, x.float()), x.shape[-1]) - x.float()).to(x.dtype)
