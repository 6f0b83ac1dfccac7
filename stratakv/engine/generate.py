"""Generation over a packed cache: streaming text, with the time that the prompt and the tokens took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from stratakv.engine.cache import KVCache
from stratakv.engine.load import LoadedModel
from stratakv.engine.positions import check_positions


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; llama.cpp's defaults. temperature 0: the most likely one."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int | None = None

    def arguments(self) -> dict[str, Any]:
        """The same, as arguments of `model.generate`."""
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        return {
            "do_sample": True,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
        }


@dataclass
class Generation:
    """What came out. tokens: new token ids; seconds: of the prompt (up to the first token) and of the tokens after it."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decode speed; the first token belongs to the prompt. 0 when there was none after it."""
        return (len(self.tokens) - 1) / self.decode_seconds if self.decode_seconds else 0.0


class _TextStream(BaseStreamer):
    """Hands text on as soon as it can't change any more (a character may need several tokens)."""

    def __init__(self, tokenizer: Any, emit: Callable[[str], None]) -> None:
        self.tokenizer, self.emit = tokenizer, emit
        self.result = Generation()
        # the prompt's last token: without it many a tokenizer drops the blank that the answer begins with
        self.tokens: list[int] = []
        self.context, self.read = 0, 1  # tokens[context:read] is text that is out already and shapes what follows
        self.started = time.perf_counter()
        self.first = self.started

    def put(self, value: torch.Tensor) -> None:
        if not self.tokens:  # transformers hands over the prompt first
            self.tokens = value.flatten().tolist()[-1:]
            return
        now = time.perf_counter()
        if not self.result.tokens:
            self.first, self.result.prompt_seconds = now, now - self.started
        new = value.flatten().tolist()
        self.tokens += new
        self.result.tokens += new
        self.result.decode_seconds = now - self.first
        self._emit(final=False)

    def end(self) -> None:
        self._emit(final=True)

    def _emit(self, *, final: bool) -> None:
        tokens = self.tokens
        before = self.tokenizer.decode(tokens[self.context : self.read], skip_special_tokens=True)
        text = self.tokenizer.decode(tokens[self.context :], skip_special_tokens=True)
        if len(text) > len(before) and (final or not text.endswith("\ufffd")):
            self.emit(text[len(before) :])
            self.result.text += text[len(before) :]
            self.context, self.read = self.read, len(tokens)


def generate(
    loaded: LoadedModel,
    cache: KVCache,
    ids: torch.Tensor,
    *,
    new_tokens: int,
    sampling: Sampling,
    emit: Callable[[str], None],
    prefill_chunk: int = 512,
) -> Generation:
    """Continue a prompt.

    ids: int64 [1, tokens], the whole text so far; what the cache holds already is not computed again. emit gets each new
    piece of text. prefill_chunk: tokens of the prompt in one forward call; all of them where the model doesn't read pieces right
    (`LoadedModel.reads_in_pieces`). At most new_tokens come, fewer when the model ends its text, or has no more positions.
    UserError for a prompt that has more tokens than those.
    """
    if (learned := loaded.positions) is not None:
        check_positions(loaded.name, learned, ids.shape[1], "the prompt has")
        new_tokens = min(new_tokens, learned - ids.shape[1] + 1)  # the last one is never read
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    stream = _TextStream(loaded.tokenizer, emit)
    stream.result.prompt_tokens = ids.shape[1] - cache.get_seq_length()
    if stream.result.prompt_tokens > prefill_chunk and not loaded.reads_in_pieces:
        prefill_chunk = ids.shape[1]
    loaded.model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        max_new_tokens=new_tokens,
        streamer=stream,
        pad_token_id=loaded.tokenizer.eos_token_id or 0,
        prefill_chunk_size=prefill_chunk,
        **sampling.arguments(),
    )
    return stream.result
