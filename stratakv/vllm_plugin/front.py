"""What is asked of a vLLM configuration that names a profile, before any rank starts. Plain attributes, no vLLM."""

from __future__ import annotations

import os
from typing import Any

from stratakv.errors import UserError
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.profile import resolve
from stratakv.profile.profile import ordinals_text
from stratakv.vllm_plugin.assignment import Assignment
from stratakv.vllm_plugin.geometry import Heads, geometry_of

PROFILE = "stratakv_profile"  # the key of --additional-config that a user gives
ASSIGNMENT = "stratakv_assignment"  # the one that the ranks read
VARIABLE = "STRATAKV_PROFILE"
DEVICES = "cpu", "cuda"


def named_profile(additional: Any) -> str | None:
    """The profile that a user named: in --additional-config, else in the environment; None for none."""
    given = additional.get(PROFILE) if isinstance(additional, dict) else None
    if given is not None and not isinstance(given, str):
        raise UserError(f"{PROFILE} in --additional-config is {given!r}: give a profile as a text")
    return (given or os.environ.get(VARIABLE, "")).strip() or None


def assignment_in(config: Any) -> Assignment | None:
    """The assignment that `assigned` put into a configuration."""
    additional = config.additional_config
    data = additional.get(ASSIGNMENT) if isinstance(additional, dict) else None
    return Assignment.from_json(data) if data else None


def assigned(text: str, config: Any) -> Assignment:
    """The assignment of a profile's text for vLLM's whole configuration. UserError for what can't be, in one line."""
    model, parallel, cache = config.model_config, config.parallel_config, config.cache_config
    name = model.served_model_name if isinstance(model.served_model_name, str) else model.model
    if (device := config.device_config.device_type) not in DEVICES:
        raise UserError(
            f"a stratakv profile runs inside vLLM on {' and '.join(DEVICES)}, not on {device}: leave it out"
        )
    if model.use_mla:
        raise UserError(
            f"{name} caches latents (MLA), which vLLM's MLA reads itself: leave the profile out, or set VLLM_MLA_DISABLE=1"
        )
    if model.is_encoder_decoder:
        raise UserError(f"{name} is an encoder with a decoder: a profile is for decoders alone")
    if model.uses_alibi:
        raise UserError(f"{name} uses ALiBi, which stratakv's kernels don't know: leave the profile out")
    if cache.block_size != PAGE_TOKENS:
        raise UserError(
            f"--block-size {cache.block_size}: packed pages hold {PAGE_TOKENS} tokens: leave it out or give {PAGE_TOKENS}"
        )
    if str(cache.cache_dtype) not in ("auto", *_model_dtype(model)):
        raise UserError(f"--kv-cache-dtype {cache.cache_dtype} beside a profile, which says the types: leave it out")
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        raise UserError(
            "context parallelism shares out a sequence's tokens: a profile is for tensor and pipeline parallelism"
        )
    if (speculative := config.speculative_config) is not None and speculative.method not in ("ngram", "suffix"):
        raise UserError(
            f"speculative decoding by {speculative.method} has a draft model with layers of its own, which a profile doesn't "
            "cover: leave one of them out, or use ngram"
        )
    geometry = geometry_of(model.hf_text_config, name, _heads(model), int(model.max_model_len))
    for role, why in (
        (
            "linear",
            "keep a state, to whose size vLLM fits the blocks of the others, and those are no longer pages of 128 tokens",
        ),
        ("chunked", "attend in chunks, by a vLLM backend of its own"),
    ):
        if found := [layer.layer for layer in geometry.layers if layer.role == role]:
            raise UserError(f"{name}: the layers {ordinals_text(found)} {why}: leave the profile out")
    return Assignment.of(resolve(text, geometry))


def _heads(model: Any) -> Any:
    def heads(layer: int) -> Heads:
        of = model.model_arch_config[layer]
        v_dim = getattr(model.hf_text_config, "v_head_dim", None) or of.head_size
        return Heads(of.total_num_attention_heads, of.total_num_kv_heads, (of.head_size, v_dim))

    return heads


def _model_dtype(model: Any) -> tuple[str, ...]:
    """Names of the model's own dtype, which vLLM may have put in place of "auto"."""
    name = str(model.dtype).removeprefix("torch.")
    return (name, "half") if name == "float16" else (name,)
