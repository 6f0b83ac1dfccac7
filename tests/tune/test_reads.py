"""Gradients taken apart by who reads: equal to those of two forms of each vector, told apart by a mask."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import ARCHITECTURES, loaded_tiny
from transformers import AttentionInterface

import stratakv.tune.gradient as gradient_module
import stratakv.tune.reads as reads_module
from stratakv.engine import attention
from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.kernels.encode import encode
from stratakv.kvtypes import kv_type
from stratakv.measure.divergence import Floats
from stratakv.profile.spans import NONE, PAGE_TOKENS, Spans
from stratakv.tune.gradient import span_damage, squares

TYPES = ("q8_0", "q4_0")
SPANS = (NONE, Spans(recent=1, recent_type="q8_0"), Spans(first=1, first_type="q8_0"), Spans(1, "q5_0", 1, "q5_0"))


def some_ids(count: int) -> torch.Tensor:
    return torch.randint(3, 97, (count,), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that computes the damage with the whole model's graph at once."""

    def compute(loaded: LoadedModel, ids: torch.Tensor) -> Floats:
        with monkeypatch.context() as patch:
            patch.setattr(gradient_module, "chain", lambda *_: None)
            return squares(loaded, ids, TYPES, 1, 0, (NONE,))[0]

    return compute


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_layer_by_layer_is_the_whole_graph(architecture: str, whole: Any) -> None:
    """Whatever a layer is told beside its hidden states, and whatever state it keeps."""
    loaded = loaded_tiny(architecture)
    found = squares(loaded, some_ids(24), TYPES, 1, 0, (NONE,))[0]
    np.testing.assert_allclose(found, whole(loaded, some_ids(24)), rtol=1e-5)


def test_the_pages_of_readers_together_are_all_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = loaded_tiny("llama")
    ids = some_ids(3 * PAGE_TOKENS + 10)
    far, near = Spans(recent=2, recent_type="q8_0"), Spans(recent=4, recent_type="q8_0")
    sealed, fine, _ = squares(loaded, ids, TYPES, 2, 0, (NONE, far, near))
    monkeypatch.setattr(reads_module, "PAGE_TOKENS", len(ids))
    whole, *_ = squares(loaded, ids, TYPES, 2, 0, (NONE, near))
    np.testing.assert_allclose(sealed[0], whole[0], rtol=1e-4)
    assert (sealed[2, ..., 1] == 0).all() and (fine[0] == 0).all()
    np.testing.assert_allclose(fine[2, ..., 1], whole[0, ..., 0], rtol=1e-4)  # all cost what the span's type does
    assert (sealed[1, ..., 1] > 0).all() and (sealed[1, ..., 1] < sealed[0, ..., 1]).all()


@pytest.mark.parametrize("architecture", ["llama", "gpt_oss", "gemma2"])
def test_spans_are_two_forms_of_each_vector(architecture: str) -> None:
    more = {"sliding_window": 300} if architecture != "llama" else {}
    loaded = loaded_tiny(architecture, **more)
    ids = some_ids(3 * PAGE_TOKENS + 10)
    sealed, fine, _ = squares(loaded, ids, (*TYPES, "q5_0"), 1, 0, SPANS)
    found = (sealed + fine)[..., :2]
    for spans, damage in zip(SPANS[1:], found[1:], strict=True):
        np.testing.assert_allclose(damage, in_two_forms(loaded, ids, spans), rtol=2e-3)
    assert (found[1:, :, :, 1] < found[0, :, :, 1]).any()


def test_layers_that_cannot_have_spans_have_the_damage_without(monkeypatch: pytest.MonkeyPatch) -> None:
    for architecture in ("falcon", "deepseek_v3"):
        sealed, fine, _ = squares(loaded_tiny(architecture), some_ids(300), (*TYPES, "q5_0"), 1, 0, SPANS)
        np.testing.assert_array_equal(sealed, sealed[:1].repeat(len(SPANS), 0))
        assert (fine == 0).all()
    monkeypatch.setattr(gradient_module, "taken_apart", nullcontext)  # attention that takes K and V as they are
    with pytest.raises(UserError, match="reads K and V by itself"):
        span_damage(loaded_tiny("llama"), some_ids(300), TYPES, 1, 0, SPANS)


def test_draws_are_squared_apart() -> None:
    """Two draws, of which one comes in two parts, as from two layers that read the same K."""
    draw = torch.Generator().manual_seed(0)
    x, once, again, more = (torch.randn(1, 2, 5, 32, generator=draw) for _ in range(4))
    reads = reads_module.Reads(TYPES, x, by_page=False)
    assert not reads.noted
    reads.add(once, 0)
    reads.next_draw()
    reads.add(again, 0)
    reads.add(more, 0)
    (sealed,), (fine,), errors = reads.squares((NONE,))
    for column, name in enumerate(TYPES):
        error = kv_type(name).decode(encode(kv_type(name), x), 32) - x
        expected = sum(float((each * error).sum(-1).double().square().sum()) for each in (once, again + more))
        assert sealed[column] == pytest.approx(expected, rel=1e-5)
        assert errors[column] == pytest.approx(float(error.square().sum()), rel=1e-5)
    assert reads.noted and not fine.any()


def in_two_forms(loaded: LoadedModel, ids: torch.Tensor, spans: Spans) -> Floats:
    """The same by hand, [kv_layers, 2, types]: every layer reads two leaves of K and of V, one sealed and one fine."""
    model: Any = loaded.model
    leaves: dict[int, list[torch.Tensor]] = {}
    page = torch.arange(len(ids)) // PAGE_TOKENS

    def attend(module: Any, q: Any, key: Any, value: Any, mask: Any, scaling: Any = None, **kwargs: Any) -> Any:
        layer = loaded.geometry.kv_layers[module.layer_idx]
        first = 0 if layer.window else spans.first
        recent = min(spans.recent, layer.window // PAGE_TOKENS) if layer.window else spans.recent
        far = (page[:, None] > page + recent) & (page >= first) & bool(first or recent)
        forms = [x.view_as(x) for x in (key, value, key, value)]
        leaves[module.layer_idx] = forms
        groups = q.shape[1] // key.shape[1]
        ks, vs, kf, vf = (x.repeat_interleave(groups, 1) for x in forms)
        scores = torch.where(far, q @ ks.mT, q @ kf.mT) * scaling
        if kwargs.get("softcap"):
            scores = torch.tanh(scores / kwargs["softcap"]) * kwargs["softcap"]
        mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril() if mask is None else mask
        scores = scores.masked_fill(~mask, -torch.inf)
        if (sinks := kwargs.get("s_aux")) is not None:
            scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(1, -1, len(ids), 1)], -1)
        p = scores.softmax(-1)[..., : len(ids)]
        return ((p * far) @ vs + (p * ~far) @ vf).transpose(1, 2), None

    AttentionInterface.register(attention.NAME, attend)
    hook = model.get_input_embeddings().register_forward_hook(lambda _m, _a, out: out.detach().requires_grad_().clone())
    try:
        logits = model(input_ids=ids[None], use_cache=False).logits[0, len(ids) // 2 : -1]
    finally:
        attention.register()
        hook.remove()
    p = logits.detach().softmax(-1)
    z = torch.empty(p.shape).bernoulli_(0.5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sketch = p.sqrt() * (z - (z * p.sqrt()).sum(-1, keepdim=True) * p.sqrt())
    damage = np.zeros((len(leaves), 2, len(TYPES)))
    for index, forms in leaves.items():
        window = loaded.geometry.kv_layers[index].window
        bare = window is not None and not min(spans.recent, window // PAGE_TOKENS)
        gradients = torch.autograd.grad(logits, forms, sketch, retain_graph=True)
        for side in (0, 1):
            sealed, fine = gradients[side], gradients[2 + side]
            for column, name in enumerate(TYPES):
                one_form = name == "q8_0" or bare  # as fine as the spans
                for gradient, stored in ((sealed + fine, name),) if one_form else ((sealed, name), (fine, spans.type)):
                    x = forms[side].detach()
                    error = kv_type(stored).decode(encode(kv_type(stored), x), x.shape[-1]) - x
                    damage[index, side, column] += float((gradient * error).sum(-1).double().square().sum())
    found: Floats = damage / (2 * logits.shape[0])
    return found
