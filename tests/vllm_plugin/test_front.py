"""What is asked of a configuration before any rank starts, with plain objects of vLLM's field names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from stratakv.errors import UserError
from stratakv.vllm_plugin.front import assigned, assignment_in, named_profile
from stratakv.vllm_plugin.geometry import Heads, geometry_of
from stratakv.vllm_plugin.patch import refused_version


class Alike:
    """Head counts that are the same in all layers."""

    total_num_attention_heads, total_num_kv_heads, head_size = 8, 2, 128

    def __getitem__(self, layer: int) -> Alike:
        return self


def config(**changes: Any) -> Any:
    """A small dense model on a CPU. changes: by part, such as cache={"block_size": 16}."""
    parts: dict[str, dict[str, Any]] = {
        "model": {
            "model": "some/model",
            "served_model_name": "small",
            "hf_text_config": SimpleNamespace(num_hidden_layers=4, **changes.pop("text", {})),
            "model_arch_config": Alike(),
            "dtype": "torch.bfloat16",
            "max_model_len": 4096,
            "use_mla": False,
            "is_encoder_decoder": False,
            "uses_alibi": False,
        },
        "parallel": {"decode_context_parallel_size": 1, "prefill_context_parallel_size": 1},
        "cache": {"block_size": 128, "cache_dtype": "auto"},
        "device": {"device_type": "cpu"},
    }
    made = {f"{part}_config": SimpleNamespace(**{**fields, **changes.pop(part, {})}) for part, fields in parts.items()}
    return SimpleNamespace(**made, speculative_config=changes.pop("speculative", None), additional_config={})


def test_a_profile_is_named_by_the_option_or_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert named_profile({}) is None and named_profile({"gdn_prefill_backend": "triton"}) is None
    assert named_profile({"stratakv_profile": " turbo4 "}) == "turbo4"
    monkeypatch.setenv("STRATAKV_PROFILE", "edges3")
    assert named_profile({}) == "edges3"
    assert named_profile({"stratakv_profile": "turbo4"}) == "turbo4"
    with pytest.raises(UserError, match="give a profile as a text"):
        named_profile({"stratakv_profile": 4})


@pytest.mark.parametrize("text", ["turbo4", "q8_0/turbo4", "first1: f16; rest: turbo3", "mode5"])
def test_every_layer_gets_its_types(text: str) -> None:
    assignment = assigned(text, config())
    assert assignment.model == "small" and len(assignment.pairs) == 4
    assert assignment.layers[3].kv_heads == 2 and assignment.layers[3].q_heads == 8
    found = config()
    found.additional_config = {"stratakv_assignment": assignment.to_json()}
    assert assignment_in(found) == assignment and assignment_in(config()) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": {"device_type": "xpu"}}, "runs inside vLLM on cpu and cuda, not on xpu"),
        ({"model": {"use_mla": True}}, r"small caches latents \(MLA\)"),
        ({"model": {"is_encoder_decoder": True}}, "an encoder with a decoder"),
        ({"model": {"uses_alibi": True}}, "ALiBi"),
        ({"cache": {"block_size": 16}}, "--block-size 16: packed pages hold 128 tokens"),
        ({"cache": {"cache_dtype": "fp8"}}, "--kv-cache-dtype fp8"),
        ({"parallel": {"decode_context_parallel_size": 2}}, "context parallelism"),
        ({"speculative": SimpleNamespace(method="eagle")}, "speculative decoding by eagle"),
        ({"text": {"layer_types": ["linear_attention"] * 3 + ["full_attention"]}}, "the layers 0-2 keep a state"),
        ({"text": {"layer_types": ["chunked_attention"] * 3 + ["full_attention"]}}, "the layers 0-2 attend in chunks"),
    ],
)
def test_what_can_t_be_is_refused_in_words(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as found:
        assigned("turbo4", config(**changes))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_devices_that_have_kernels(device: str) -> None:
    assert assigned("turbo4", config(device={"device_type": device})).name == "turbo4"


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_the_model_s_own_dtype_is_no_other_type(dtype: str) -> None:
    assert assigned("turbo4", config(cache={"cache_dtype": dtype})).name == "turbo4"


def test_ngram_speculation_has_no_layers() -> None:
    assert assigned("turbo4", config(speculative=SimpleNamespace(method="ngram"))).name == "turbo4"


def heads(layer: int) -> Heads:
    return Heads(8, 2, (128, 128))


def test_a_config_s_layers_by_their_kinds() -> None:
    kinds = ["sliding_attention", "full_attention", "linear_attention", "full_attention", "sliding_attention"]
    text = SimpleNamespace(num_hidden_layers=5, layer_types=kinds, sliding_window=512, num_kv_shared_layers=1)
    found = geometry_of(text, "mixed", heads)
    assert [layer.role for layer in found.layers] == ["sliding", "full", "linear", "full", "shared"]
    assert [layer.ordinal for layer in found.layers] == [0, 1, None, 2, None]
    assert [layer.window for layer in found.layers] == [512, None, None, None, None]


@pytest.mark.parametrize(
    ("fields", "role"),
    [
        ({}, "full"),
        ({"sliding_window": None}, "full"),
        ({"sliding_window": 1024}, "sliding"),
        ({"sliding_window": 1024, "use_sliding_window": False}, "full"),
        ({"attention_chunk_size": 8192}, "chunked"),
    ],
)
def test_a_config_that_names_no_kinds(fields: dict[str, Any], role: str) -> None:
    found = geometry_of(SimpleNamespace(num_hidden_layers=2, **fields), "plain", heads)
    assert {layer.role for layer in found.layers} == {role}


@pytest.mark.parametrize("version", ["0.32.0", "0.32.4", "0.32.0+cpu"])
def test_versions_that_were_tested(version: str) -> None:
    assert refused_version(version) is None


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.0", "dev"])
def test_other_versions_are_refused_in_words(version: str) -> None:
    assert f"vLLM {version}: stratakv's plugin was tested with vLLM from 0.32 to before 0.33" in str(
        refused_version(version)
    )
