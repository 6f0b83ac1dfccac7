"""vLLM in this process, on small models in Hugging Face format, for the tests that `make test-vllm` runs."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gguf_to_hf import write_hf

from stratakv.assets import judging_text
from stratakv.engine.cache import KVCache
from stratakv.engine.load import LoadedModel

MIXED = "first3,last3: q8_0/turbo4; rest: turbo3"
# An engine that multiplies in another order computes other last bits, and now and then a token whose value moves to the next
# code: our own engine's logits of two tokens that such a step may swap. Seen: 0.005
TIE = 0.02


class Answer(NamedTuple):
    """tokens: of the prompt and new ones. cached: tokens of the prompt that were found in the prefix cache."""

    prompt: list[int]
    tokens: list[int]
    cached: int


class Engine:
    """One engine of vLLM. blocks: in its cache."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self.blocks: int = llm.llm_engine.vllm_config.cache_config.num_gpu_blocks

    def answers(self, prompts: Sequence[str], tokens: int = 24) -> list[Answer]:
        """Greedy answers to all prompts at once."""
        from vllm import SamplingParams

        found = self.llm.generate(list(prompts), SamplingParams(temperature=0, max_tokens=tokens), use_tqdm=False)
        return [
            Answer(list(each.prompt_token_ids), list(each.outputs[0].token_ids), each.num_cached_tokens)
            for each in found
        ]

    def preemptions(self) -> int:
        """How often a request has lost its blocks."""
        return sum(each.value for each in self.llm.get_metrics() if each.name == "vllm:num_preemptions")


@contextmanager
def engine(model: Path, profile: str | None, *, mib: float = 64, **settings: Any) -> Iterator[Engine]:
    """vLLM with a profile, or as it ships, in this process. mib: memory of its cache."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # read when vLLM is imported
    from vllm import LLM

    usual = {
        "dtype": "float32",
        "max_model_len": 1024,
        "max_num_seqs": 16,
        "enforce_eager": True,
        "disable_log_stats": False,
    }
    llm = LLM(
        str(model),
        kv_cache_memory_bytes=int(mib * 2**20),
        additional_config={"stratakv_profile": profile} if profile else {},
        **{**usual, **settings},
    )
    made = Engine(llm)
    del llm
    try:
        yield made
    finally:
        made.llm = None  # an engine that ends takes the process's groups along, those of a later one too
        gc.collect()


def converted(source: str, folder: Path) -> Path:
    """A GGUF model in Hugging Face format, in a folder that a run of the tests shares."""
    target = folder / Path(source).stem
    if not target.exists():
        write_hf(source, target)
    return target


def prompts(count: int) -> list[str]:
    """Pieces of a book, each longer than the one before it."""
    text = judging_text().read_text(encoding="utf-8")
    return [text[at * 3000 : at * 3000 + 200 + at * 120] for at in range(count)]


def moved(loaded: LoadedModel, profile: str, answers: Sequence[Answer]) -> list[str]:
    """Where vLLM's greedy tokens aren't our own engine's, and no tie explains it. The first such token of each answer counts."""
    found = []
    for number, answer in enumerate(answers):
        cache, step = KVCache(loaded.model.config, profile), torch.tensor([answer.prompt])
        for at, token in enumerate(answer.tokens):
            with torch.inference_mode():
                logits = loaded.model(step, past_key_values=cache).logits[0, -1].float()
            own = int(logits.argmax())
            if own != token:
                gap = float(logits[own] - logits[token])
                if gap > TIE:
                    found.append(f"answer {number}, token {at}: {gap:.4f} apart")
                break
            step = torch.tensor([[own]])
    return found
