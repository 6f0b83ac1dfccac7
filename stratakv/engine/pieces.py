"""Whether a model reads a prompt in pieces as it reads the whole: tried, with a lossless cache and exact products."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from stratakv.engine.cache import KVCache
from stratakv.engine.cache.layers import PackedLayer
from stratakv.profile import ModelGeometry, Profile, resolve
from stratakv.weights.exact import exact_products

TOKENS = 8
# Of the logits' spread. What a token sees in error moves them by about as much as they are themselves; beside that there is the
# order of sums, which costs 1e-6 in float32 and a few percent in 16 bits
_TOLERANCE = {torch.float32: 0.01}
_TOLERANCE_16_BITS = 0.1


def reads_in_pieces(model: PreTrainedModel, geometry: ModelGeometry) -> bool:
    """Whether a model gives the same logits for a prompt in pieces; transformers' Jamba forgets the state between them.

    A model whose layers keep K and V of each token and nothing else does; others are tried.
    """
    lossless = resolve("f32", geometry)
    config: Any = model.config
    layers = zip(KVCache(config, lossless).layers, geometry.layers, strict=True)
    if all(_keeps_tokens_alone(kept) or layer.role == "shared" for kept, layer in layers):
        return True
    ids = made_up_tokens(model)
    with exact_products(model), torch.inference_mode():
        whole = own_logits(model, lossless, ids)[:, -1]
        pieces = own_logits(model, lossless, ids, first=TOKENS // 2)[:, -1]
    return all(same_logits(model, ours, theirs) for ours, theirs in zip(pieces, whole, strict=True))


def _keeps_tokens_alone(layer: Any) -> bool:
    return isinstance(layer, PackedLayer) and not isinstance(layer, LinearAttentionCacheLayerMixin)


def same_logits(model: PreTrainedModel, ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether logits [vocabulary] differ by no more than the order of sums does."""
    tolerance = _TOLERANCE.get(model.dtype, _TOLERANCE_16_BITS)
    return bool((ours - theirs).norm() <= tolerance * (theirs - theirs.mean()).norm())


def made_up_tokens(model: PreTrainedModel) -> torch.Tensor:
    """int64 [2, TOKENS], always the same."""
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(min(3, vocabulary - 1), vocabulary, (2, TOKENS), generator=generator)


def own_logits(model: PreTrainedModel, profile: Profile, ids: torch.Tensor, *, first: int = TOKENS) -> torch.Tensor:
    """float32 [2, two or more last tokens, vocabulary]: both sequences as rows of a batch, in one call, or the `first` tokens
    in one and the others in the next."""
    run: Any = model
    options: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = 2
    cache = KVCache(run.config, profile)
    positions = torch.arange(TOKENS).expand(2, -1)
    for some in (slice(0, first), slice(first, TOKENS)):
        given, where = (x[:, some].to(model.device) for x in (ids, positions))
        if given.numel():
            out = run(input_ids=given, position_ids=where, past_key_values=cache, use_cache=True, **options)
    logits: torch.Tensor = out.logits
    return logits.float().cpu()
