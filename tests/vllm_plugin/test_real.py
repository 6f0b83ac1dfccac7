"""Inside vLLM: SmolLM2-135M, a model that people use, beside our own engine.

Its packed caches are chaotic: embeddings that differ by one part in a million move codes in all layers, and the first token's
logit by 0.02 with turbo4, a seventh of what turbo4 itself does to it. So tokens are compared where nothing is lost, and elsewhere
the log-probabilities of vLLM's tokens: they must lie nearest to those of our own engine with the same types.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from real_models import SMOLLM2, needs_models
from vllm_engines import converted, engine, prompts

from stratakv.engine.cache import KVCache
from stratakv.engine.load import LoadedModel, load_model

pytestmark = [pytest.mark.vllm, pytest.mark.real, needs_models]

Asked = list[tuple[list[int], list[int]]]  # tokens of prompts, and the answers'


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(str(SMOLLM2), tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def loaded(smollm2: Path) -> LoadedModel:
    return load_model(smollm2)


def answers(model: Path, profile: str | None) -> tuple[Asked, torch.Tensor]:
    """vLLM's greedy answers and the log-probability of each of their tokens, [prompts, tokens]."""
    from vllm import SamplingParams

    with engine(model, profile, mib=256) as made:
        settings = SamplingParams(temperature=0, max_tokens=16, logprobs=1)
        found = made.llm.generate(prompts(4), settings, use_tqdm=False)
    asked = [(list(each.prompt_token_ids), list(each.outputs[0].token_ids)) for each in found]
    rows = [
        [said[token].logprob for said, token in zip(each.outputs[0].logprobs, each.outputs[0].token_ids, strict=True)]
        for each in found
    ]
    return asked, torch.tensor(rows)


def by_own_engine(loaded: LoadedModel, profile: str, asked: Asked) -> torch.Tensor:
    """The log-probabilities that it gives these tokens."""
    rows = []
    for prompt, tokens in asked:
        cache, step, row = KVCache(loaded.model.config, profile), torch.tensor([prompt]), []
        for token in tokens:
            with torch.inference_mode():
                logits = loaded.model(step, past_key_values=cache).logits[0, -1].float()
            row.append(logits.log_softmax(-1)[token])
            step = torch.tensor([[token]])
        rows.append(torch.stack(row))
    return torch.stack(rows)


def test_a_lossless_profile_gives_stock_vllm_s_tokens(smollm2: Path, loaded: LoadedModel) -> None:
    asked, said = answers(smollm2, "f32")
    assert asked == answers(smollm2, None)[0]
    assert (said - by_own_engine(loaded, "f32", asked)).abs().max() < 1e-3


@pytest.mark.parametrize("profile", ["turbo4", "q8_0"])
def test_packed_types_are_our_own_engine_s(smollm2: Path, loaded: LoadedModel, profile: str) -> None:
    asked, said = answers(smollm2, profile)
    others = {other: by_own_engine(loaded, other, asked) for other in ("f32", "q8_0", "turbo4", "turbo3")}
    away = {other: float((said - found).abs().mean()) for other, found in others.items()}
    assert min(away, key=away.__getitem__) == profile, away
