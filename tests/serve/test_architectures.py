"""Models of other kinds: batched where their layers allow it, one by one where not, and right in both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from packed_models import lossless, pack
from serving import GREEDY, answers, check_same, tokens_of
from tiny_models import ARCHITECTURES, loaded_tiny

from stratakv.pages.layout import PAGE_TOKENS
from stratakv.serve.request import GenerationRequest
from stratakv.weights import ggml
from stratakv.weights.fuse import fuse_layers

ONE_BY_ONE = ["deepseek_v3", "falcon", "falcon_h1", "granitemoehybrid", "jamba", "lfm2", "qwen3_next"]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_tokens_of_the_stock_cache(engines: Any, model_type: str) -> None:
    tiny = loaded_tiny(model_type)
    engine = engines("f32", model=tiny, slots=4, context=256, cache_bytes=2**24, prefill_chunk=32)
    batched = engine.cache.runner.batching.startswith("one forward call for all")
    assert batched == (model_type not in ONE_BY_ONE), engine.cache.runner.batching
    generator = torch.Generator().manual_seed(1)
    requests = [
        GenerationRequest(tuple(torch.randint(3, 97, (length,), generator=generator).tolist()), 10, GREEDY)
        for length in (5, 150, 40, 20)
    ]
    found = answers(engine, requests)
    for request, (_, pieces, _) in zip(requests, found, strict=True):
        with torch.inference_mode():
            ids = torch.tensor([request.prompt])
            out = tiny.model.generate(ids, max_new_tokens=10, do_sample=False, attention_mask=torch.ones_like(ids))
        assert [token.id for token in tokens_of(pieces)] == out[0, len(request.prompt) :].tolist()
    again = answers(engine, requests)
    for (_, ours, finish), (_, theirs, _) in zip(again, found, strict=True):
        check_same(tokens_of(ours), tokens_of(theirs), 1e-3)
        assert model_type in ONE_BY_ONE or finish.cached_tokens == finish.prompt_tokens // PAGE_TOKENS * PAGE_TOKENS
    snapshot = engine.snapshot()
    assert snapshot.pages_used == 0


@pytest.mark.skipif(ggml.unavailable() is not None, reason=f"ggml's kernels: {ggml.unavailable()}")
@pytest.mark.parametrize("model_type", ["gemma4_text", "gpt_oss", "gemma3_text"])
def test_fused_layers_share_steps_too(engines: Any, model_type: str, tmp_path: Path) -> None:
    tiny = loaded_tiny(model_type)
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(3, 97, (1, length), generator=generator) for length in (5, 150, 40, 20)]
    expected = [
        tiny.model.generate(ids, max_new_tokens=10, do_sample=False)[0, ids.shape[1] :].tolist()  # type: ignore[operator]
        for ids in prompts
    ]
    assert fuse_layers(pack(tiny.model, tmp_path / "rows"), lossless) == 4
    engine = engines("f32", model=tiny, slots=4, context=256, cache_bytes=2**24, prefill_chunk=32)
    assert engine.cache.runner.batching.startswith("one forward call for all")
    found = answers(engine, [GenerationRequest(tuple(ids[0].tolist()), 10, GREEDY) for ids in prompts])
    assert [[token.id for token in tokens_of(pieces)] for _, pieces, _ in found] == expected
