"""A model's decoder layers as a chain whose links can be run again by themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from stratakv.engine.load import LoadedModel
from stratakv.tune.replay import decoder_layers


@dataclass(frozen=True)
class Call:
    """A decoder layer, what it was called with beside hidden states, the cache among that, and x, the hidden states."""

    layer: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    cache: Any
    x: torch.Tensor

    def again(self, x: torch.Tensor, cache: Any) -> torch.Tensor:
        """The hidden states that the layer makes of others, with another cache."""
        args = [cache if each is self.cache else each for each in self.args]
        kwargs = {name: cache if each is self.cache else each for name, each in self.kwargs.items()}
        return _hidden(self.layer(x, *args, **kwargs))


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
    if not layers:
        return None
    kept = _Kept(cache, len(layers))
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(kept.enter, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(kept.leave).remove)
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        model(input_ids=ids, past_key_values=cache, use_cache=True, **({"logits_to_keep": 1} if keeps else {}))
    if [call.layer for call in kept.calls] != layers or not kept.linked:
        return None
    return Chain(model, tuple(kept.calls), kept.out)


class _Kept:
    """The calls of a forward pass as they come. linked: whether each layer got what the one before it gave.

    All hidden states lie in one piece of memory: among what each layer needs for a moment, and gives back, they would leave holes
    that the next layer's don't fit into.
    """

    def __init__(self, cache: Any, layers: int) -> None:
        self.cache, self.layers = cache, layers
        self.calls: list[Call] = []
        self.linked = True
        self.out: Any = None
        self._states = torch.empty(0)

    def enter(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a layer."""
        x: torch.Tensor = args[0] if args else kwargs["hidden_states"]
        self.linked &= not self.calls or x is _hidden(self.out)
        if not self.calls:
            self._states = x.new_empty(self.layers, *x.shape)
        self.linked &= len(self.calls) < self.layers and x.shape == self._states.shape[1:]
        if self.linked:
            state = self._states[len(self.calls)].copy_(x)
            rest = {name: each for name, each in kwargs.items() if each is not x}
            self.calls.append(Call(layer, args[1:], rest, self.cache, state))

    def leave(self, _layer: Any, _args: Any, out: Any) -> None:
        """After it."""
        self.out = out


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
