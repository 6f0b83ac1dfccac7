"""One model behind a pipe, decoding and tuning for as long as it is told: JSON lines in, JSON lines out.

Requests: {"do": "load", "model", "profile", "threads"}: {}; {"do": "decode", "context", "seconds"} and
{"do": "tune", "context", "seconds"}: {"count", "seconds"}, tokens after a prompt and tokens of gradient passes.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from stratakv.bench.worker import answer_requests
from stratakv.engine.cache import KVCache
from stratakv.engine.load import LoadedModel, load_model
from stratakv.tune.gradient import gradient_damage

_TUNED = ("q8_0", "turbo4")


class _Session:
    loaded: LoadedModel
    profile: str

    def load(self, model: str, profile: str, threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        self.loaded, self.profile = load_model(model), profile
        return {}

    @torch.inference_mode()
    def decode(self, context: int, seconds: float) -> dict[str, Any]:
        """Greedy tokens on top of a prompt, as many as `seconds` allow; the prompt is not timed."""
        model: Any = self.loaded.model
        cache = KVCache(model.config, self.profile)
        token = _tokens(context)[None]
        count, began = -1, time.perf_counter()
        while count < 1 or time.perf_counter() - began < seconds:
            logits = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            token = logits[:, -1].argmax(-1, keepdim=True)
            count += 1
            if count == 0:
                began = time.perf_counter()
        return {"count": count, "seconds": time.perf_counter() - began}

    def tune(self, context: int, seconds: float) -> dict[str, Any]:
        """Whole gradient passes of one context: forward, one draw backward, every layer's errors in two types."""
        ids, passes, began = _tokens(context), 0, time.perf_counter()
        while passes == 0 or time.perf_counter() - began < seconds:
            gradient_damage(self.loaded, ids, _TUNED, draws=1, seed=1)
            passes += 1
        return {"count": passes * context, "seconds": time.perf_counter() - began}


def _tokens(count: int) -> torch.Tensor:
    return torch.arange(count) % 7 + 1


if __name__ == "__main__":
    answer_requests(_Session())
