"""Contexts through the packed cache again and again, a few layers changed each time: what lies below them is not run again.

Layers below the first changed one give what they gave at the recorded operating point, so a change in the middle of a model
costs half a forward pass. Exact: the layers above see the same inputs as in a whole run (tested by equality).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from stratakv.engine.cache import KVCache
from stratakv.engine.load import LoadedModel
from stratakv.measure.divergence import Floats
from stratakv.measure.run import BASELINE
from stratakv.profile import Profile, resolve

_LOGITS_AT_ONCE = 1 << 23  # of one batch: 64 MiB of float64
_CONTEXTS_AT_ONCE = 4


class Replay:
    """Some contexts of one model, with the f16 cache's predictions on them.

    ids: int64 [batch, context]. Each context is fed in one piece; predictions at positions context // 2 to context - 2 are
    scored, as everywhere (`measure`). passes: what was run so far, in forward passes of one context.
    """

    def __init__(self, loaded: LoadedModel, ids: torch.Tensor) -> None:
        self.loaded, self.ids = loaded, ids
        self.passes = 0.0
        self._layers = decoder_layers(loaded)
        self._recorded: tuple[Profile, list[Any]] | None = None
        log_p = self._logits(resolve(BASELINE, loaded.geometry), 0).double().log_softmax(-1)
        self._p = log_p.exp()
        # where p is 0 the term is 0 by definition
        self._negative_entropy = (self._p * log_p).masked_fill(self._p == 0, 0.0).sum(-1)

    @property
    def nbytes(self) -> int:
        """About what is held: the reference's predictions and, once recorded, the layers' outputs."""
        hidden = int(getattr(self.loaded.model.config.get_text_config(decoder=True), "hidden_size", 0) or 0)
        return self._p.nbytes + 4 * hidden * self.ids.numel() * len(self._layers)

    def record(self, profile: Profile) -> Floats:
        """Make this profile the operating point; its mean KLD of each context, nats [batch]."""
        outputs: list[Any] = []
        order: list[int] = []

        def keep(index: int, output: Any) -> None:
            order.append(index)
            outputs.append(output)

        self._recorded = None
        with ExitStack() as stack:
            for index, layer in enumerate(self._layers):
                handle = layer.register_forward_hook(lambda _m, _a, output, index=index: keep(index, output))
                stack.callback(handle.remove)
            logits = self._logits(profile, 0)
        if order == list(range(len(self._layers))):  # a model that runs its layers otherwise is run whole each time
            self._recorded = (profile, outputs)
        return self._kld(logits)

    def kld(self, profile: Profile) -> Floats:
        """Mean KLD of each context against the f16 cache, nats [batch]."""
        return self._kld(self._logits(profile, self._first_changed(profile)))

    def _first_changed(self, profile: Profile) -> int:
        """The model's layer from which on a run is needed."""
        if self._recorded is None or not self._layers:
            return 0
        for layer, old, new in zip(
            profile.geometry.kv_layers, self._recorded[0].storages, profile.storages, strict=True
        ):
            if old != new:
                return layer.layer
        return profile.geometry.kv_layers[-1].layer

    def _logits(self, profile: Profile, start: int) -> torch.Tensor:
        """Scored logits [batch * scored, vocab]."""
        model: Any = self.loaded.model
        first = self.ids.shape[1] // 2
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        arguments = {"logits_to_keep": self.ids.shape[1] - first} if keeps else {}
        cache = KVCache(model.config, profile)
        with torch.inference_mode(), self._replaced(start):
            logits = model(
                input_ids=self.ids.to(model.device), past_key_values=cache, use_cache=True, **arguments
            ).logits
        self.passes += len(self.ids) * (1 - start / max(1, len(self.loaded.geometry.layers)))
        scored = logits[:, first - self.ids.shape[1] : -1]
        rows: torch.Tensor = scored.reshape(-1, scored.shape[-1])
        return rows

    @contextmanager
    def _replaced(self, start: int) -> Iterator[None]:
        """Within, decoder layers below `start` give what was recorded."""
        if start == 0 or self._recorded is None:
            yield
            return
        below = list(zip(self._layers[:start], self._recorded[1], strict=False))
        own = [vars(layer).get("forward") for layer, _ in below]  # a fused layer has one of its own
        try:
            for layer, output in below:
                layer.forward = lambda *_, output=output, **__: output
            yield
        finally:
            for (layer, _), forward in zip(below, own, strict=True):
                layer.__dict__.pop("forward", None)
                if forward is not None:
                    layer.forward = forward

    def _kld(self, logits: torch.Tensor) -> Floats:
        logits = logits.double()
        kld = self._negative_entropy - (self._p * logits).sum(-1) + logits.logsumexp(-1)
        values: Floats = kld.view(len(self.ids), -1).mean(-1).cpu().numpy()
        if not np.isfinite(values).all():
            raise FloatingPointError("KL divergence is not finite")
        return values


def decoder_layers(loaded: LoadedModel) -> list[torch.nn.Module]:
    """The model's decoder layers in order; empty where they can't be told, or read each other's caches."""
    count = len(loaded.geometry.layers)
    if any(layer.role == "shared" for layer in loaded.geometry.layers):
        return []
    for module in loaded.model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return list(module)
    return []


def batch_size(loaded: LoadedModel, context: int) -> int:
    """Contexts that one `Replay` holds: several where the vocabulary is small."""
    vocabulary = int(getattr(loaded.model.config.get_text_config(decoder=True), "vocab_size", 1) or 1)
    return max(1, min(_CONTEXTS_AT_ONCE, _LOGITS_AT_ONCE // (vocabulary * max(1, context // 2))))
