"""Damage of every layer, side and type at once from gradients: one forward pass, a backward pass a draw.

To second order the KL divergence that small errors of K and V cause is half their square under the Fisher information F of the
predictions (Martens 2020, "New insights and perspectives on the natural gradient method"). For logits F = diag(p) - p p', which
is B B' with B = diag(sqrt p) - p sqrt(p)'. So with z of random signs, and g the gradient of (B z) . logits with respect to a
stored vector whose actual quantization error is e, E[(g . e)^2] is the share of that vector; errors of different vectors are
taken as independent. g and e are of K after RoPE, and the product doesn't depend on the basis that the type stores in.

Decoder layers are run forward once without gradients. Then each, from the last to the first, runs again with them and is left
behind, so that memory holds one layer's activations and all layers' inputs. A model whose layers are no plain chain is
differentiated whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.heap import Heap
from stratakv.kvtypes import kv_type
from stratakv.measure.divergence import Floats
from stratakv.profile import LayerGeometry
from stratakv.profile.spans import NONE, Spans
from stratakv.profile.spread import fit
from stratakv.tune.layers import Chain, chain
from stratakv.tune.memory import LOGITS_AT_ONCE
from stratakv.tune.pooled import pooled
from stratakv.tune.reads import Watched, keeps_its_form, taken_apart

_SPARE = 128 << 20  # bytes of freed memory that the heap may keep between layers
# what autograd says of operations without a derivative, and of values cut off from what they came from
_NOT_DIFFERENTIABLE = ("derivative", "require grad", "in the graph", "must implement", "autograd formula")


class NotDifferentiableError(Exception):
    """No gradient comes back through this model's layers; says why."""


def passes_of(draws: int) -> int:
    """Forward passes that a context takes: a backward pass costs about two."""
    return 1 + 2 * draws


def gradient_damage(loaded: LoadedModel, ids: torch.Tensor, types: Sequence[str], draws: int, seed: int) -> Floats:
    """Predicted KLD in nats a scored prediction when one layer's K or V alone is stored as a type, all else exact.

    ids: int64 [context]. All predictions are scored: the passes cost the same, and twice as many say twice as much. draws: of
    signs, a backward pass each. Returns float64 [kv_layers, 2 (K, V), types].
    """
    found: Floats = span_damage(loaded, ids, types, draws, seed, (NONE,))[0]
    return found


def span_damage(
    loaded: LoadedModel,
    ids: torch.Tensor,
    types: Sequence[str],
    draws: int,
    seed: int,
    spans: Sequence[Spans],
    first: int | None = None,
) -> Floats:
    """The same under each of `spans`, from the same passes: float64 [spans, kv_layers, 2 (K, V), types].

    What lies in a span costs what the span's own type does to it. A layer has the spans as far as it can, so those that
    slide have fewer. first: position of the first scored prediction; None: with spans the second half of the context is
    scored, which sees most of what is sealed. UserError for a model that reads K and V by itself, and so can't have spans;
    NotDifferentiableError.
    """
    asked = tuple(types)
    columns = tuple(dict.fromkeys((*asked, *(each.type for each in spans if each))))
    sealed, fine, errors = squares(loaded, ids, columns, draws, seed, spans, first)
    dim = loaded.geometry.kv_layers[0].head_dim[0]
    found = np.empty_like(sealed)
    for each, part, rest, out in zip(spans, sealed, fine, found, strict=True):
        kinds = [(kv_type(n).rotation(dim) is None, bool(each) and keeps_its_form(n, each, dim)) for n in columns]
        out[...] = pooled(part, errors, kinds) + rest
    return found[..., : len(asked)]


def squares(
    loaded: LoadedModel,
    ids: torch.Tensor,
    types: Sequence[str],
    draws: int,
    seed: int,
    spans: Sequence[Spans],
    first: int | None = None,
) -> tuple[Floats, Floats, Floats]:
    """What `span_damage` is made of. (g . e)^2 / 2 a scored prediction, [spans, kv_layers, 2, types]: of what is sealed, and of
    what lies in the spans in their own type. Squared errors, summed: [kv_layers, 2, types]. types: the spans' own among them."""
    geometry = loaded.geometry.kv_layers
    apart = any(spans)
    watched = Watched(loaded.model.config, {layer.layer: apart and layer.reads_pages for layer in geometry}, types)
    sealed, fine = (np.zeros((len(spans), len(geometry), 2, len(types))) for _ in range(2))
    errors = np.zeros((len(geometry), 2, len(types)))
    ordinals = {layer.layer: ordinal for ordinal, layer in enumerate(geometry)}

    def collect() -> None:
        """Add what the backward passes through some layers found."""
        for index, pair in watched.reads.items():
            ordinal = ordinals[index]
            fitted = [_fitted(each, geometry[ordinal], types) for each in spans]
            for side, each in enumerate(pair):
                if each.by_page and not each.read:
                    raise UserError(f"{loaded.name} reads K and V by itself, so it can't have spans: leave them out")
                if not each.noted:
                    raise NotDifferentiableError(f"no gradient comes to {'KV'[side]} of KV layer {ordinal}")
                sealed[:, ordinal, side], fine[:, ordinal, side], errors[ordinal, side] = each.squares(fitted)
        watched.reads.clear()

    if first is None:
        first = len(ids) // 2 if apart else 0
    passes = _Passes(loaded, ids, watched, draws, first, torch.Generator().manual_seed(seed))
    with _frozen(loaded.model), taken_apart() if apart else nullcontext():
        links = chain(loaded, passes.ids, watched.cache())
        try:
            if links is None:
                passes.whole(collect)
            else:
                passes.by_layer(links, collect)
        except RuntimeError as error:
            if any(word in str(error) for word in _NOT_DIFFERENTIABLE):
                raise NotDifferentiableError(str(error).splitlines()[0]) from error
            raise
    scale = 1 / (2 * draws * passes.scored)
    return sealed * scale, fine * scale, errors


def _fitted(spans: Spans, layer: LayerGeometry, types: Sequence[str]) -> Spans:
    """What the layer can have of the spans where its own types are coarse."""
    coarsest = min(types, key=lambda name: kv_type(name).bits_per_value(layer.head_dim[0]))
    return fit(spans, layer, (coarsest, coarsest))[0]


class _Passes:
    """Forward and backward over one context, ids [context]. draws: backward passes. first: position that is scored first."""

    def __init__(
        self, loaded: LoadedModel, ids: torch.Tensor, watched: Watched, draws: int, first: int, signs: torch.Generator
    ) -> None:
        self.model: Any = loaded.model
        self.ids, self.watched, self.draws, self.signs = ids[None].to(loaded.model.device), watched, draws, signs
        self.first = first
        self.scored = len(ids) - 1 - first

    def by_layer(self, links: Chain, collect: Callable[[], None]) -> None:
        """Layer by layer, recomputing."""
        heap = Heap(_SPARE)
        heap.trim()
        gradients = self._at_the_end(links)
        for call in reversed(links.calls):
            heap.trim()
            x = call.x.detach().requires_grad_()
            with torch.enable_grad():
                y = call.again(x, self.watched.cache())
            for draw, gradient in enumerate(gradients):
                if draw:
                    self.watched.next_draw()
                (below,) = torch.autograd.grad(y, x, gradient, retain_graph=draw + 1 < self.draws)
                gradient.copy_(below)  # where it lies already: see layers._Kept
            del y, below  # with all that hangs on them
            collect()

    def whole(self, collect: Callable[[], None]) -> None:
        """Through the whole model at once."""
        leaf: list[torch.Tensor] = []

        def keep(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
            leaf.append(out.detach().requires_grad_())
            return leaf[0].clone()

        # fused layers give way to the layers that compute gradients where their input wants one: so the first one's does
        hook = self.model.get_input_embeddings().register_forward_hook(keep)
        try:
            with torch.enable_grad():
                logits = self.model(input_ids=self.ids, past_key_values=self.watched.cache(), use_cache=True).logits
        finally:
            hook.remove()
        logits = logits[0, self.first : -1]
        for draw in range(self.draws):
            if draw:
                self.watched.next_draw()
            sketch = self._sketch(logits.detach())
            torch.autograd.grad(logits, leaf[0], sketch, retain_graph=draw + 1 < self.draws)
        collect()

    def _at_the_end(self, links: Chain) -> list[torch.Tensor]:
        """Gradients with respect to the last layer's output, one a draw, some positions at a time: logits are large."""
        gradients = [torch.zeros_like(links.hidden) for _ in range(self.draws)]
        vocabulary = int(getattr(self.model.config.get_text_config(decoder=True), "vocab_size", 1) or 1)
        step = max(1, LOGITS_AT_ONCE // vocabulary)
        for first in range(self.first, self.ids.shape[1] - 1, step):
            rows = slice(first, min(first + step, self.ids.shape[1] - 1))
            part = links.hidden[..., rows, :].detach().requires_grad_()
            with torch.enable_grad():
                logits = links.logits(part, self.ids[:, rows])
            for draw, gradient in enumerate(gradients):
                sketch = self._sketch(logits.detach()[0])[None]
                (gradient[..., rows, :],) = torch.autograd.grad(
                    logits, part, sketch, retain_graph=draw + 1 < self.draws
                )
        return gradients

    def _sketch(self, logits: torch.Tensor) -> torch.Tensor:
        """B z for each row of logits [rows, vocabulary]."""
        p = logits.float().softmax(-1)
        root = p.sqrt()
        z = torch.empty(p.shape).bernoulli_(0.5, generator=self.signs).mul_(2).sub_(1).to(p.device).mul_(root)
        return z.sub_(p.mul_(z.sum(-1, keepdim=True))).to(logits.dtype)


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Within, no weight gets a gradient."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
