"""One model with one cache behind a pipe, so that its peak memory is its own: JSON lines in, JSON lines out.

Requests, in this order: {"do": "load", "model", "threads"}: {"weight_bytes", "dtype"}; {"do": "fill", "cache", "context"}: {};
{"do": "decode", "seconds"}: {"seconds": [...], "cache_bytes", "resident_weights"}. Before "fill", if at all:
{"do": "prefill", "cache", "tokens"}: {"seconds"}. After "decode", if at all: {"do": "beside", "cache", "seconds"}: the same cache
and another one, as long, step by step in turn: {"ratio", "page_tokens"}, see `_Session.beside`.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, QuantizedCache

from stratakv.bench.generate.shapes import QWEN3_SHAPE, qwen3_config, random_model
from stratakv.bench.worker import answer_requests
from stratakv.engine.attention import use
from stratakv.engine.cache import KVCache
from stratakv.engine.cache.geometry import geometry_of
from stratakv.engine.describe import describe_model
from stratakv.engine.load import load_weights
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.weights.build import PackedWeights

DYNAMIC = "DynamicCache"
# name -> arguments of transformers' QuantizedCache
_QUANTIZED: dict[str, dict[str, Any]] = {
    "QuantizedCache quanto 4 bit": {"backend": "quanto", "nbits": 4},
    "QuantizedCache HQQ 4 bit": {"backend": "hqq", "nbits": 4, "axis_key": 1, "axis_value": 1},
    "QuantizedCache fp8": {"backend": "fp8"},
}
_PIECE = 4096
_PROMPT_PIECE = 512
_WARM_UP = 3
_LEAST, _MOST = 3, 200


class _Session:
    """The model and the cache of this process."""

    model: PreTrainedModel
    packed: PackedWeights | None
    cache: Any
    name: str  # of the cache
    context: int

    def load(self, model: str, threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        self.packed = None
        if model == QWEN3_SHAPE:
            self.model = random_model(qwen3_config())
            size = sum(parameter.nbytes for parameter in self.model.parameters())
        else:
            weights = load_weights(describe_model(model))
            self.model, self.packed, size = use(weights.model), weights.packed, weights.nbytes
        return {"weight_bytes": size, "dtype": str(self.model.dtype).removeprefix("torch.")}

    def prefill(self, cache: str, tokens: int) -> dict[str, Any]:
        """A prompt into an empty cache in pieces of 512, after one piece into another."""
        config: Any = self.model.config
        prompt = torch.arange(tokens)[None] % 7 + 1
        for end in (_PROMPT_PIECE, tokens):
            self._use(cache)
            store = self.cache = DynamicCache(config=config) if cache == DYNAMIC else KVCache(config, cache)
            started = time.perf_counter()
            for start in range(0, end, _PROMPT_PIECE):
                piece = prompt[:, start : start + _PROMPT_PIECE]
                self.model(input_ids=piece, past_key_values=store, use_cache=True, logits_to_keep=1)
            seconds = time.perf_counter() - started
        return {"seconds": seconds}

    def _use(self, cache: str) -> None:
        if cache == DYNAMIC or cache in _QUANTIZED:
            self.model.set_attn_implementation("sdpa")
        else:
            use(self.model)

    def fill(self, cache: str, context: int) -> dict[str, Any]:
        """Random states straight into the cache; the model doesn't run."""
        config: Any = self.model.config
        self.name, self.context = cache, context
        self._use(cache)
        if cache == DYNAMIC:
            self.cache = DynamicCache(config=config)
        elif cache in _QUANTIZED:
            self.cache = QuantizedCache(config=config, **_QUANTIZED[cache])
        else:
            self.cache = KVCache(config, cache)
        whole = cache == DYNAMIC or cache in _QUANTIZED  # their update copies all that is there: once, then
        for layer in geometry_of(config).kv_layers:
            for start in range(0, context, context if whole else _PIECE):
                tokens = context if whole else min(_PIECE, context - start)
                shape = (1, layer.kv_heads, tokens)
                k, v = (torch.randn(*shape, dim, dtype=self.model.dtype) for dim in layer.head_dim)
                self.cache.update(k, v, layer.layer)
        return {}

    def decode(self, seconds: float) -> dict[str, Any]:
        """Greedy steps, one after another, so the context grows by one token each."""
        token = torch.ones(1, 1, dtype=torch.int64)
        times: list[float] = []
        began = time.monotonic()
        while len(times) < _WARM_UP + _LEAST or (len(times) < _MOST and time.monotonic() - began < seconds):
            started = time.perf_counter()
            out: Any = self.model(input_ids=token, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            times.append(time.perf_counter() - started)
        return {"seconds": times[_WARM_UP:], "cache_bytes": _cache_bytes(self.cache), **self._resident()}

    def beside(self, cache: str, seconds: float) -> dict[str, Any]:
        """Both caches filled anew, which take turns: step by step, so that a wandering clock meets both.

        ratio: the median of our steps over the other one's, pair by pair. page_tokens: of each token that fills a page, the time
        over the other tokens' median.
        """
        both, times = [], [list[float](), list[float]()]
        for each in (self.name, cache):
            self.fill(each, self.context)
            both.append(self.cache)
        token, began, pages = torch.ones(1, 1, dtype=torch.int64), time.monotonic(), list[float]()
        while len(times[0]) < _WARM_UP + _LEAST or (len(times[0]) < _MOST and time.monotonic() - began < seconds):
            for mine, kept in zip(times, both, strict=True):
                started = time.perf_counter()
                self.model(input_ids=token, past_key_values=kept, use_cache=True, logits_to_keep=1)
                mine.append(time.perf_counter() - started)
            if both[0].get_seq_length() % PAGE_TOKENS == 0 and len(times[0]) > _WARM_UP:
                pages.append(times[0][-1])
        ours, theirs = (each[_WARM_UP:] for each in times)
        ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
        return {"ratio": ratio, "page_tokens": [each / median(ours) for each in pages]}

    def _resident(self) -> dict[str, Any]:
        """Bytes of the weights in memory: what is mapped of the file, from the system, and what is unpacked; None elsewhere."""
        maps = Path("/proc/self/smaps")
        if self.packed is None or not maps.exists():
            return {"resident_weights": None}
        resident, inside = 0, False
        for line in maps.read_text().splitlines():
            if "-" in line.split(" ", 1)[0]:
                inside = any(line.endswith(str(file.path)) for file in self.packed.files)
            elif inside and line.startswith("Rss:"):
                resident += int(line.split()[1]) * 1024
        return {"resident_weights": resident + self.packed.plain_bytes}


def quantized_caches() -> list[str]:
    """The kinds of transformers' QuantizedCache that are installed here: quanto, HQQ, and fp8, which needs neither."""
    from transformers.utils.import_utils import is_hqq_available, is_optimum_quanto_available

    there = {"quanto": is_optimum_quanto_available(), "hqq": is_hqq_available(), "fp8": True}
    return [name for name, arguments in _QUANTIZED.items() if there[arguments["backend"]]]


def _cache_bytes(cache: Any) -> int | None:
    """Bytes of K and V; None for a cache that doesn't tell."""
    if isinstance(cache, KVCache):
        return cache.nbytes()
    if isinstance(cache, QuantizedCache):
        return None
    return sum(int(layer.keys.nbytes + layer.values.nbytes) for layer in cache.layers)


if __name__ == "__main__":
    with torch.inference_mode():
        answer_requests(_Session())
