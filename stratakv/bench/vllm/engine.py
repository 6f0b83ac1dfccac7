"""One engine of vLLM behind a pipe, as it ships or with a profile: JSON lines in, JSON lines out. vLLM's Python runs it.

The engine lives in this process, with no server around it: what is timed is its scheduler, its model and its cache.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch  # before stratakv, which would tell OpenMP how to wait: stock vLLM is to run as it does without it

from stratakv.bench.worker import answer_requests
from stratakv.errors import UserError

BLOCK_TOKENS = 128


class _Session:
    def __init__(self) -> None:
        self.llm: Any = None
        self._asked = 0

    def load(self, model: str, settings: dict[str, Any], profile: str | None, threads: int) -> dict[str, Any]:
        """Start the engine; vLLM's version, and the blocks of its cache."""
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        try:
            import vllm
        except ImportError as error:
            raise UserError(
                f"{sys.executable} has no vLLM ({error}): give the python of an environment with it"
            ) from None
        torch.set_num_threads(threads)
        more = {"additional_config": {"stratakv_profile": profile}} if profile else {}
        try:
            self.llm = vllm.LLM(model, skip_tokenizer_init=True, **settings, **more)
        except (NotImplementedError, ValueError, RuntimeError) as error:
            raise UserError(str(error).strip().splitlines()[-1]) from None
        cache = self.llm.llm_engine.vllm_config.cache_config
        return {"version": vllm.__version__, "blocks": cache.num_gpu_blocks, "block_tokens": cache.block_size}

    def answer(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        """Greedy answers of exactly so many tokens, all asked for at once.

        seconds: until the last one is done. first: seconds to each request's first token, in their order. together: requests
        that were at work at once with their whole prompts in the cache, at most.
        """
        from vllm import SamplingParams

        engine = self.llm.llm_engine
        scheduler = engine.engine_core.engine_core.scheduler
        settings = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        names = [f"{self._asked + number}" for number in range(len(prompts))]
        self._asked += len(prompts)
        first: dict[str, float] = {}
        together = 0
        began = time.perf_counter()
        for name, prompt in zip(names, prompts, strict=True):
            engine.add_request(name, {"prompt_token_ids": prompt}, settings)
        while engine.has_unfinished_requests():
            found = engine.step()
            now = time.perf_counter() - began
            for each in found:
                if each.outputs[0].token_ids:
                    first.setdefault(each.request_id, now)
            whole = [each for each in scheduler.running if each.num_computed_tokens >= each.num_prompt_tokens]
            together = max(together, len(whole))
        return {"seconds": now, "first": [first[name] for name in names], "together": together}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM's words go where errors go
    sys.stdout = answers
    os.environ["VLLM_LOGGING_STREAM"] = "ext://sys.stderr"
    answer_requests(_Session())
