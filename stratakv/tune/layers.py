"""A model's decoder layers as a chain whose links can be run again by themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from stratakv.engine.load import LoadedModel
from stratakv.tune.replay import decoder_layers


@dataclass(frozen=True)
class Call:
    """A decoder layer, what it was called with, and the cache among that."""

    layer: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    cache: Any

    @property
    def x(self) -> torch.Tensor:
        """The hidden states that it was given."""
        x: torch.Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return x

    def again(self, x: torch.Tensor, cache: Any) -> torch.Tensor:
        """The hidden states that the layer makes of others, with another cache."""
        args = [cache if each is self.cache else each for each in self.args]
        kwargs = {name: cache if each is self.cache else each for name, each in self.kwargs.items()}
        if args:
            args[0] = x
        else:
            kwargs["hidden_states"] = x
        return _hidden(self.layer(*args, **kwargs))


@dataclass(frozen=True)
class Chain:
    """calls: of all decoder layers in a pass over one context, in order. out: what the last one gave."""

    model: Any
    calls: tuple[Call, ...]
    out: Any

    @property
    def hidden(self) -> torch.Tensor:
        """The last layer's hidden states."""
        return _hidden(self.out)

    def logits(self, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """What the model makes of other hidden states after its last layer, those of tokens ids [1, n]: [1, n, vocabulary]."""
        out = (hidden, *self.out[1:]) if isinstance(self.out, tuple) else hidden
        with _giving([call.layer for call in self.calls], out):
            logits: torch.Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits


@torch.no_grad()
def chain(loaded: LoadedModel, ids: torch.Tensor, cache: Any) -> Chain | None:
    """One forward pass without gradients over ids [1, context]. None for layers that can't be told, or that are no chain."""
    model: Any = loaded.model
    layers = decoder_layers(loaded)
    calls: list[Call] = []
    outs: list[Any] = []
    if not layers:
        return None
    with ExitStack() as stack:
        for layer in layers:
            keep = partial(_keep_call, calls, cache)
            stack.callback(layer.register_forward_pre_hook(keep, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(lambda _m, _a, out: outs.append(out)).remove)
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        model(input_ids=ids, past_key_values=cache, use_cache=True, **({"logits_to_keep": 1} if keeps else {}))
    if [call.layer for call in calls] != layers:
        return None
    linked = all(call.x is _hidden(out) for call, out in zip(calls[1:], outs[:-1], strict=True))
    return Chain(model, tuple(calls), outs[-1]) if linked else None


def _keep_call(calls: list[Call], cache: Any, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    calls.append(Call(layer, args, kwargs, cache))


def _hidden(out: Any) -> torch.Tensor:
    hidden: torch.Tensor = out[0] if isinstance(out, tuple) else out
    return hidden


@contextmanager
def _giving(layers: Sequence[Any], out: Any) -> Iterator[None]:
    """Within, decoder layers give `out`."""
    own = [vars(layer).get("forward") for layer in layers]  # a fused layer has one of its own
    try:
        for layer in layers:
            layer.forward = lambda *_, **__: out
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            layer.__dict__.pop("forward", None)
            if forward is not None:
                layer.forward = forward
