"""Parameters that clients send with every request though they change nothing: samplers that are off, and what belongs to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ANY = object()
# The values with which a parameter changes no answer here; with others it is refused by its name
_OFF: dict[str, tuple[Any, ...]] = {
    "mirostat": (0,),
    "mirostat_tau": (_ANY,),  # these two say how mirostat works, which is refused when it is on
    "mirostat_eta": (_ANY,),
    "tfs_z": (1,),
    "top_a": (0,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "smoothing_factor": (0,),
    "smoothing_curve": (_ANY,),
    "skew": (0,),
    "penalty_alpha": (0,),
    "adaptive_target": (-1, 0),
    "adaptive_decay": (_ANY,),
    "guidance_scale": (1,),
    "negative_prompt": ("",),
    "do_sample": (True,),
    "num_beams": (1,),
    "use_beam_search": (False,),
    "length_penalty": (_ANY,),
    "early_stopping": (_ANY,),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "penalize_nl": (_ANY,),  # llama.cpp took it out
    "penalize_newline": (_ANY,),
    "penalty_prompt": (None, "", []),
    "min_keep": (0, 1),
    "min_length": (0,),
    "min_tokens": (0,),
    "minimum_message_content_tokens": (0,),
    "best_of": (1,),
    "bad_words": ([],),
    "custom_token_bans": ("", []),
    "banned_tokens": ([],),
    "banned_strings": ([],),
    "stop_token_ids": ([],),
    "add_bos_token": (True,),
    "ban_eos_token": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (_ANY,),
    "include_stop_str_in_output": (False,),
    "include_reasoning": (_ANY,),
    "prompt_logprobs": (0,),
    "return_progress": (False,),
    "image_data": ([],),
    "multimodal_data": ([],),
    "lora": ([],),
    "grammar_lazy": (False,),
    "grammar_triggers": ([],),
    "preserved_tokens": ([],),
    "grammar_string": ("",),
    # Nothing is shifted out of the context, nothing is guessed: what says how has nothing to say
    "n_keep": (_ANY,),
    "n_discard": (_ANY,),
    "n_cache_reuse": (_ANY,),
    "n_indent": (0,),
    "speculative.n_min": (_ANY,),
    "speculative.n_max": (_ANY,),
    "speculative.p_min": (_ANY,),
    "functions": ([],),
    "function_call": ("auto", "none"),
    "background": (False,),
    "service_tier": ("auto", "default", "flex", "priority", "scale", "standard_only"),
    "modalities": (["text"],),
    "prediction": ({},),
    "documents": ([],),
    "chat_template": ("",),
    "priority": (_ANY,),
    "request_id": (_ANY,),
    "api_type": (_ANY,),  # SillyTavern tells itself where it sends to
    "api_server": (_ANY,),
    "sampler_order": ([],),
    "truncation_length": (_ANY,),
    "max_tokens_second": (0,),
}
# The same by another name: text-generation-webui's, vLLM's, SillyTavern's
_TWINS = {
    "sampler_seed": "seed",
    "stopping_strings": "stop",
    "stop_sequence": "stop",
    "rep_pen": "repeat_penalty",
    "repetition_penalty": "repeat_penalty",
    "rep_pen_range": "repeat_last_n",
    "repetition_penalty_range": "repeat_last_n",
    "typical": "typical_p",
    "tfs": "tfs_z",
    "nsigma": "top_n_sigma",
    "mirostat_mode": "mirostat",
    "dynatemp_range_exponent": "dynatemp_exponent",
}


def without_inert(data: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """A body without what changes nothing, other names for a known parameter put right. known: parameters of the body."""
    out: dict[str, Any] = {}
    for name, value in data.items():
        if name not in known and name in _TWINS:
            name = _TWINS[name]
            if name in data or name in out:  # clients send both, with one value
                continue
        if name in known or not (value is None or any(value == off or off is _ANY for off in _OFF.get(name, ()))):
            out[name] = value
    return out
