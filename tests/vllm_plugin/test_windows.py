"""Inside vLLM: models with sliding windows, in all layers or in some, and a cap on their logits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from vllm_engines import Answer, engine, moved

from stratakv.engine.attention import use
from stratakv.engine.cache.geometry import geometry_of
from stratakv.engine.load import LoadedModel

pytestmark = pytest.mark.vllm

WINDOW = 160
UNLIKE = "first1: q8_0/turbo4; rest: turbo3"


def token_prompts() -> list[list[int]]:
    """Shorter than a window, a page longer than it, and much longer."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 97, (count,), generator=generator).tolist() for count in (40, 300, 500, 129)]


class Words(logging.Handler):
    """What the plugin logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def answers(model: Path, profile: str | None) -> tuple[list[Answer], str]:
    """vLLM's, and what the plugin logged."""
    from vllm import SamplingParams

    words, logger = Words(), logging.getLogger("vllm.plugins.stratakv")
    logger.addHandler(words)
    settings = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, detokenize=False)
    try:
        with engine(model, profile, skip_tokenizer_init=True) as made:
            asked: list[Any] = [{"prompt_token_ids": prompt} for prompt in token_prompts()]
            found = made.llm.generate(asked, settings, use_tqdm=False)
    finally:
        logger.removeHandler(words)
    said = [Answer(list(each.prompt_token_ids), list(each.outputs[0].token_ids), 0) for each in found]
    return said, "\n".join(words.lines)


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gemma3_text"])
def test_they_are_what_our_own_engine_makes_of_them(kind: str, tmp_path: Path) -> None:
    more = {"head_dim": 64, "hidden_size": 64, "max_position_embeddings": 1024, "sliding_window": WINDOW}
    model = tiny_model(kind, **more)
    model.save_pretrained(tmp_path)
    own = LoadedModel(use(model), None, kind, kind, geometry_of(model.config, kind), 0)
    assert answers(tmp_path, "f32")[0] == answers(tmp_path, None)[0]
    said, words = answers(tmp_path, UNLIKE)
    assert moved(own, UNLIKE, said) == []
    windows = {layer.window for layer in own.geometry.kv_layers}
    assert ("is padding" in words) == (len(windows) > 1), words
