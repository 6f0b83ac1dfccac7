"""Layers made of compiled parts give what transformers' own give, in prompts, in steps, over every kind of layer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_models import lossless, pack
from tiny_models import tiny_model

from stratakv import KVCache
from stratakv.engine.attention import use
from stratakv.engine.cache.layers import PackedLayer
from stratakv.errors import UserError
from stratakv.weights import ggml
from stratakv.weights.fuse import fuse_layers
from stratakv.weights.fused_layer import FusedLayer
from stratakv.weights.parts import UnknownPartError, layer_parts, norm
from stratakv.weights.stack import Stack

pytestmark = pytest.mark.skipif(ggml.unavailable() is not None, reason=f"ggml's kernels: {ggml.unavailable()}")
FUSED = (
    *("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "phi3", "gpt_oss", "granite"),
    *("smollm3", "olmo2", "olmo3"),
)
PROMPT, STEPS = 21, 3


def watched(model: Any) -> list[int]:
    """Fuse the model's layers; the list gets the number of tokens of each step that runs in compiled calls alone."""
    assert fuse_layers(model, lossless) == 4
    stack: Any = getattr(model, model.base_model_prefix).forward.__self__
    assert isinstance(stack, Stack)
    steps: list[int] = []
    run = stack._run

    def watch(x: torch.Tensor, *rest: Any) -> None:
        steps.append(x.shape[1])
        run(x, *rest)

    stack._run = watch  # type: ignore[method-assign]
    return steps


def logits(model: Any, ids: torch.Tensor, profile: str = "f32") -> torch.Tensor:
    """Of a prompt, then token by token, all positions, over a packed cache."""
    cache = KVCache(model.config, profile)
    with torch.inference_mode():
        parts = [model(ids[:, :PROMPT], past_key_values=cache).logits]
        for at in range(PROMPT, ids.shape[1]):
            parts.append(model(ids[:, at : at + 1], past_key_values=cache).logits)
    return torch.cat(parts, 1)


@pytest.mark.parametrize("model_type", FUSED)
def test_prompts_and_steps_are_the_model_s_own(tmp_path: Path, model_type: str) -> None:
    plain: Any = use(tiny_model(model_type))
    if getattr(plain.config, "residual_multiplier", None) is not None:
        for layer in plain.model.layers:  # by default 1, which nobody would miss
            layer.residual_multiplier = 0.3
        plain.model.embedding_multiplier = 2.0
    if model_type == "smollm3":
        plain.model.layers[3].self_attn.use_rope = 0
    fused: Any = use(tiny_model(model_type))
    for ours, theirs in zip(fused.model.layers, plain.model.layers, strict=True):
        ours.__dict__.update({k: v for k, v in theirs.__dict__.items() if k == "residual_multiplier"})
        ours.self_attn.__dict__.update({k: v for k, v in theirs.self_attn.__dict__.items() if k == "use_rope"})
    fused.model.__dict__.update({k: v for k, v in plain.model.__dict__.items() if k == "embedding_multiplier"})
    steps = watched(pack(fused, tmp_path / "rows"))
    for batch in (1, 2):
        ids = torch.randint(3, 97, (batch, PROMPT + STEPS), generator=torch.Generator().manual_seed(batch))
        expected, found = logits(plain, ids), logits(fused, ids)
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))
    assert steps == [1] * 2 * STEPS


def test_more_tokens_than_a_layer_takes_at_a_time(tmp_path: Path) -> None:
    plain, fused = use(tiny_model("llama")), use(tiny_model("llama"))
    steps = watched(pack(fused, tmp_path / "rows"))
    ids = torch.randint(3, 97, (150, PROMPT + 1), generator=torch.Generator().manual_seed(7))
    expected, found = logits(plain, ids), logits(fused, ids)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))
    assert torch.equal(found[131:], logits(fused, ids[131:]))
    assert steps == [1, 1]


SPANS = "rest: turbo4; recent: 1 page turbo8; first: 1 page turbo8"


def read_in_pieces(model: Any, ids: torch.Tensor, sizes: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits of a prompt, and the sealed pages' bytes, layer by layer."""
    cache = KVCache(model.config, SPANS)
    with torch.inference_mode():
        found = torch.cat([model(piece, past_key_values=cache).logits for piece in ids.split(sizes, dim=1)], 1)
    sealed = [layer.sealed.tables for layer in cache.layers if layer.sealed is not None]
    return found, [tables.pool.read(tables.arrays.numbers.reshape(-1)) for tables in sealed]


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_piece_that_seals_its_own_pages_is_one_call(
    tmp_path: Path, model_type: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call for each layer took 15 and 26 s instead of 5.5 and 8.2 where other programs held the cores."""
    model = use(tiny_model(model_type))
    steps = watched(pack(model, tmp_path / "rows"))
    sizes = [90, 512, 300, 1, 97]
    ids = torch.randint(3, 97, (batch, sum(sizes)), generator=torch.Generator().manual_seed(7))
    found, pages = read_in_pieces(model, ids, sizes)
    assert steps == sizes[1:]
    monkeypatch.setattr(PackedLayer, "place", lambda *given: None)
    expected, those = read_in_pieces(model, ids, sizes)
    assert steps == sizes[1:] and sum(map(len, pages)) >= 4
    assert torch.equal(found, expected)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(pages, those, strict=True))


def test_what_one_call_can_t_seal_names_the_layer_and_is_undone(tmp_path: Path) -> None:
    model: Any = tiny_model("llama")
    model.model.layers[2].self_attn.v_proj.weight.data *= 1e7
    model = use(model)
    steps = watched(pack(model, tmp_path / "rows"))
    cache = KVCache(model.config, "rest: f16; recent: 1 page f32")
    ids = torch.randint(3, 97, (1, 600), generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        model(ids[:, :90], past_key_values=cache)
        for _ in range(2):
            with pytest.raises(UserError, match="layer 2, V: .*too large.*leave the spans"):
                model(ids[:, 90:], past_key_values=cache)
            assert [layer.length for layer in cache.layers] == [90] * 4
            assert not any(layer.sealed.tables.indices for layer in cache.layers)
    assert steps == [510, 510]


GEMMA4: dict[str, dict[str, Any]] = {
    "shared K and V, inputs of each layer": {},
    "experts, V that is K": {
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0,
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
    },
}


@pytest.mark.parametrize("kind", GEMMA4)
def test_gemma_4_runs_layer_by_layer(tmp_path: Path, kind: str) -> None:
    plain, fused = (use(tiny_model("gemma4_text", **GEMMA4[kind])) for _ in range(2))
    for model in (plain, fused):
        for number, layer in enumerate(model.model.layers):
            layer.layer_scalar.fill_(0.5 + 0.25 * number)  # by default 1, which nobody would miss
    pack(fused, tmp_path / "rows")
    assert fuse_layers(fused, lossless) == 4 and all(
        isinstance(x.forward.__self__, FusedLayer) for x in fused.model.layers
    )
    assert not isinstance(getattr(fused.model.forward, "__self__", None), Stack)
    for batch in (1, 2):
        ids = torch.randint(3, 97, (batch, PROMPT + STEPS), generator=torch.Generator().manual_seed(batch))
        expected, found = logits(plain, ids), logits(fused, ids)
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_a_few_tokens_at_once_see_no_later_ones(tmp_path: Path) -> None:
    plain, fused = use(tiny_model("gemma3_text")), use(tiny_model("gemma3_text"))
    steps = watched(pack(fused, tmp_path / "rows"))
    ids = torch.randint(3, 97, (2, 30), generator=torch.Generator().manual_seed(5))
    caches = [KVCache(model.config, "f32") for model in (plain, fused)]
    with torch.inference_mode():
        for start, end in ((0, 20), (20, 25), (25, 30)):
            a, b = (m(ids[:, start:end], past_key_values=c).logits for m, c in zip((plain, fused), caches, strict=True))
            torch.testing.assert_close(b, a, rtol=2e-3, atol=2e-3 * float(a.abs().max()))
    assert steps == [5, 5]


def test_hidden_tokens_and_watched_layers_take_the_model_s_own_way(tmp_path: Path) -> None:
    fused: Any = use(tiny_model("llama"))
    steps = watched(pack(fused, tmp_path / "rows"))
    ids = torch.randint(3, 97, (2, PROMPT + 1), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    with torch.inference_mode():
        cache = KVCache(fused.config, "f32")
        fused(ids[:, :-1], attention_mask=mask[:, :-1], past_key_values=cache)
        fused(ids[:, -1:], attention_mask=mask, past_key_values=cache)
        cache = KVCache(fused.config, "f32")
        fused(ids[:, :-1], past_key_values=cache)
        seen: list[Any] = []
        handle = fused.model.layers[2].register_forward_hook(lambda _m, _a, out: seen.append(out))
        fused(ids[:, -1:], past_key_values=cache)
        handle.remove()
        assert len(seen) == 1 and steps == []
        fused(ids[:, -1:], past_key_values=cache)
        assert steps == [1]
        out = fused(ids[:, -1:], past_key_values=cache, output_hidden_states=True)
        assert steps == [1] and len(out.hidden_states) == 5


def test_steps_are_fast_again_after_one_that_gave_hidden_states(tmp_path: Path) -> None:
    fused: Any = use(tiny_model("llama"))
    steps = watched(pack(fused, tmp_path / "rows"))
    ids = torch.randint(3, 97, (1, PROMPT + 3), generator=torch.Generator().manual_seed(5))
    cache = KVCache(fused.config, "f32")
    with torch.inference_mode():
        fused(ids[:, :PROMPT], past_key_values=cache)
        for asked in ("output_hidden_states", "output_attentions"):
            fused(ids[:, PROMPT : PROMPT + 1], past_key_values=cache, **{asked: True})
            assert fused.model.layers[0]._forward_hooks and steps == []  # transformers leaves them there
        fused(ids[:, PROMPT + 1 : PROMPT + 2], past_key_values=cache)
        assert steps == [1]
        seen: list[Any] = []
        fused.model.layers[2].register_forward_hook(lambda _m, _a, out: seen.append(out))
        fused(ids[:, PROMPT + 2 :], past_key_values=cache)
        assert steps == [1] and len(seen) == 1


def test_states_that_can_t_be_stored_name_their_layer_and_leave_the_cache_as_it_was(tmp_path: Path) -> None:
    from stratakv import UserError

    fused: Any = use(tiny_model("llama"))
    steps = watched(pack(fused, tmp_path / "rows"))
    ids = torch.randint(3, 97, (1, PROMPT + 1), generator=torch.Generator().manual_seed(5))
    cache = KVCache(fused.config, "turbo4")
    with torch.inference_mode():
        fused(ids[:, :-1], past_key_values=cache)
        fused.model.embed_tokens.weight[ids[0, -1]] = float("nan")
        with pytest.raises(UserError, match=r"layer 0, K: non-finite"):
            fused(ids[:, -1:], past_key_values=cache)
    assert steps == [1] and cache.get_seq_length() == PROMPT


def test_a_layer_that_means_something_else_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pack(use(tiny_model("llama")), tmp_path / "rows")
    module = sys.modules[type(model.model.layers[0]).__module__]
    monkeypatch.setattr(module, "rotate_half", lambda x: x.flip(-1))
    assert fuse_layers(model, lossless) == 0
    assert "forward" not in vars(model.model) and "forward" not in vars(model.model.layers[0])


def test_unknown_parts_are_named() -> None:
    with pytest.raises(UnknownPartError, match="o_proj of LlamaAttention isn't packed"):
        layer_parts(tiny_model("llama").model.layers[0])
    with pytest.raises(UnknownPartError, match="LayerNorm"):
        norm(torch.nn.LayerNorm(8))
