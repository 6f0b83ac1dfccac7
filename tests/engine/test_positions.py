"""Models whose positions have an end, or hang on how long a text is: said in words, and nobody's answer hangs on others'."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from serving import GREEDY, answers, tokens_of
from tiny_models import loaded_tiny
from transformers import AutoConfig, AutoModelForCausalLM

from stratakv import KVCache, UserError, resolve
from stratakv.engine.generate import Sampling, generate
from stratakv.engine.positions import learned_positions
from stratakv.serve.engine import Engine
from stratakv.serve.request import GenerationRequest, Limits

BORDER = 32
LONGROPE: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [8.0] * 4,
        "original_max_position_embeddings": BORDER,
    },
    "original_max_position_embeddings": BORDER,
}
DYNAMIC: dict[str, Any] = {
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0},
    "max_position_embeddings": BORDER,
}


def served(tiny: Any, context: int = 256) -> Engine:
    return Engine(tiny, resolve("f32", tiny.geometry), Limits(context=context, cache_bytes=2**24, prefix_cache=False))


def request(tokens: int, new: int) -> GenerationRequest:
    return GenerationRequest(tuple(3 + i % 90 for i in range(tokens)), new, GREEDY)


def test_learned_positions_have_an_end() -> None:
    """One request beyond them ended the server for all."""
    tiny = loaded_tiny("gpt2", n_positions=64, max_position_embeddings=64)
    assert tiny.positions == 64
    engine = served(tiny, 64)
    engine.start()
    try:
        ((_, pieces, finish),) = answers(engine, [request(60, 20)])
        assert finish.reason == "length" and len(tokens_of(pieces)) == 4 and engine.healthy
    finally:
        asyncio.run(engine.stop())
    with pytest.raises(UserError, match="may have 65 tokens, gpt2 has learned 64 positions"):
        served(tiny, 65)


def test_generation_ends_where_positions_do() -> None:
    """It ended in an IndexError of torch's."""
    tiny = loaded_tiny("gpt2", n_positions=64, max_position_embeddings=64)

    def tokens(prompt: int) -> list[int]:
        ids = torch.tensor([request(prompt, 1).prompt])
        cache = KVCache(tiny.model.config, "f32")
        asked = {"new_tokens": 20, "sampling": Sampling(temperature=0), "emit": lambda text: None}
        return generate(tiny, cache, ids, **asked).tokens

    assert [len(tokens(prompt)) for prompt in (30, 60, 64)] == [20, 5, 1]
    with pytest.raises(UserError, match="the prompt has 65 tokens, gpt2 has learned 64 positions"):
        tokens(65)


def test_tables_of_positions() -> None:
    sizes = {
        "hidden_size": 16,
        "ffn_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
    }
    opt = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("opt", vocab_size=9, max_position_embeddings=64, **sizes)
    )
    assert learned_positions(opt) == 64  # of its table of 66 the first two are nobody's
    assert loaded_tiny("llama").positions is None


@pytest.mark.parametrize(("model_type", "rope"), [("phi3", LONGROPE), ("llama", DYNAMIC)], ids=["longrope", "dynamic"])
def test_a_long_text_turns_no_other_ones(model_type: str, rope: dict[str, Any]) -> None:
    """transformers takes the frequencies of a call's longest text for all positions in it; and keeps dynamic ones."""
    engine = served(loaded_tiny(model_type, **rope))
    engine.start()
    requests = [request(5, 12), request(30, 40), request(20, 30), request(9, 12)]  # two of them come to be long
    try:
        alone = [answers(engine, [each])[0][1] for each in requests]
        company = [pieces for _, pieces, _ in answers(engine, requests)]
    finally:
        asyncio.run(engine.stop())
    for ours, theirs in zip(company, alone, strict=True):
        mine, others = (torch.tensor([token.logprob for token in tokens_of(pieces)]) for pieces in (ours, theirs))
        assert torch.allclose(mine, others, atol=1e-3)
        assert [token.id for token in tokens_of(ours)] == [token.id for token in tokens_of(theirs)]
    batched = [loss.feature for loss in engine.lost if loss.feature == "batching"]
    assert batched == (["batching"] if model_type == "llama" else [])
