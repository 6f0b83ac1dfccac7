"""What can't be done is listed with its reason, and only that."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_models import loaded_tiny

from stratakv.kernels.choice import TORCH, preferred
from stratakv.profile import resolve
from stratakv.serve import grammar
from stratakv.serve.engine import Engine
from stratakv.serve.request import Limits


def lost(tiny: Any, profile: str = "f32") -> dict[str, str]:
    engine = Engine(tiny, resolve(profile, tiny.geometry), Limits(context=256, cache_bytes=2**24))
    assert engine.snapshot().lost == engine.lost
    return {loss.feature: loss.why for loss in engine.lost}


class Words:
    """A tokenizer of the kind that llguidance reads, as far as anyone looks."""

    eos_token_id = None
    backend_tokenizer = object()


def test_nothing() -> None:
    tiny = loaded_tiny("llama")
    tiny.tokenizer = Words()
    assert lost(tiny) == {}


def test_what_goes_with_batching() -> None:
    tiny = loaded_tiny("jamba")
    found = lost(tiny)
    assert list(found) == ["batching", "prefix reuse", "saved slots", "prompts in pieces", "grammars"]
    assert "a state of constant size" in found["batching"] and "shared pages" in found["saved slots"]
    assert "tokenizer" in found["grammars"]


@pytest.mark.parametrize("model_type", ["deepseek_v3", "falcon", "falcon_h1", "granitemoehybrid", "lfm2", "qwen3_next"])
def test_others_are_read_in_pieces(model_type: str) -> None:
    assert list(lost(loaded_tiny(model_type))) == ["batching", "prefix reuse", "saved slots", "grammars"]


def test_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATAKV_KERNEL", "torch")
    why = lost(loaded_tiny("llama"))["compiled kernels"]
    assert why.startswith("4 layers") and why.endswith("many times slower (STRATAKV_KERNEL=torch)")
    monkeypatch.undo()
    wide = loaded_tiny("llama", head_dim=1032, num_attention_heads=1, num_key_value_heads=1, num_hidden_layers=1)
    assert lost(wide)["compiled kernels"].endswith("(no compiled kernel for a head_dim above 1024)")


def test_layers_with_spans_are_counted_once_and_their_finer_pages_too(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, asked = loaded_tiny("llama", head_dim=128), set[tuple[str, str]]()

    def kernel(layout: Any, device: Any) -> Any:
        asked.add((layout.k.name, layout.v.name))
        return TORCH if layout.k.name == "q8_0" else preferred(device)

    monkeypatch.setattr("stratakv.serve.losses.kernel_for", kernel)
    assert lost(tiny, "1: turbo4, recent 1 page q8_0; rest: turbo4; recent: 1 page turbo8")[
        "compiled kernels"
    ].startswith("layer 1 read")
    assert asked == {("turbo4", "turbo4"), ("turbo8", "turbo8"), ("q8_0", "q8_0")}
    monkeypatch.undo()
    monkeypatch.setenv("STRATAKV_KERNEL", "torch")
    assert lost(tiny, "rest: turbo4; recent: 1 page turbo8")["compiled kernels"].startswith("4 layers")


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar.importlib.util, "find_spec", lambda name: None)
    assert "llguidance is not installed" in lost(loaded_tiny("llama"))["grammars"]
