"""A conversation over one cache: each turn computes only what the cache doesn't hold yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch

from stratakv.engine.cache import KVCache
from stratakv.engine.chat_template import FALLBACK_TEMPLATE, own_template, rendered, template_problem
from stratakv.engine.generate import Generation, Sampling, generate
from stratakv.engine.load import LoadedModel
from stratakv.engine.prompt import prompt_ids
from stratakv.profile import Profile


@dataclass
class Conversation:
    """Messages so far, the cache, and the tokens that it holds."""

    loaded: LoadedModel
    profile: Profile
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    cache: KVCache = field(init=False)
    held: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """An empty cache, and the system message, if any."""
        self.cache = KVCache(self.loaded.model.config, self.profile)
        if self.system:
            self.messages.append({"role": "system", "content": self.system})

    @property
    def has_template(self) -> bool:
        """Whether the model brings a chat template of its own, one that compiles."""
        return self._own_template is not None

    @cached_property
    def template_problem(self) -> str | None:
        """Why the model's own template can't be used, in words; None: it can, or there is none."""
        return template_problem(self.loaded.tokenizer)

    @cached_property
    def _own_template(self) -> str | None:
        return None if self.template_problem else own_template(self.loaded.tokenizer)

    def prompt_ids(self) -> list[int]:
        """Token ids of the messages so far, up to where the model's answer begins."""
        tokenizer = self.loaded.tokenizer
        text = rendered(tokenizer, self.messages, self._own_template or FALLBACK_TEMPLATE, add_generation_prompt=True)
        return prompt_ids(tokenizer, text, special=not self.has_template)

    def ask(
        self, text: str, *, new_tokens: int, sampling: Sampling, emit: Callable[[str], None], prefill_chunk: int = 512
    ) -> Generation:
        """One turn: the user's text in, the model's answer out (streamed to emit) and into the messages.

        Whatever ends it before its answer is whole, an interruption too, the conversation is as it was before. UserError for
        messages that the model's template refuses.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            ids = self.prompt_ids()
            self._keep_common(ids)
            result = generate(
                self.loaded,
                self.cache,
                torch.tensor([ids]),
                new_tokens=new_tokens,
                sampling=sampling,
                emit=emit,
                prefill_chunk=prefill_chunk,
            )
        except BaseException:
            self.messages.pop()
            self.cache, self.held = KVCache(self.loaded.model.config, self.profile), []
            raise
        self.messages.append({"role": "assistant", "content": result.text.strip()})
        self.held = (ids + result.tokens)[: self.cache.get_seq_length()]
        return result

    def _keep_common(self, ids: list[int]) -> None:
        """Crop the cache to the tokens it shares with ids; the last one is always computed, for its logits."""
        common = 0
        while common < min(len(ids) - 1, len(self.held)) and ids[common] == self.held[common]:
            common += 1
        if 0 < common < len(ids) - 1 and not self.loaded.reads_in_pieces:
            common = 0
        surplus = self.cache.get_seq_length() - common
        if surplus > 0 and self._croppable():
            self.cache.crop(-surplus)
        elif surplus > 0:
            self.cache = KVCache(self.loaded.model.config, self.profile)
            common = 0
        self.held = ids[:common]

    def _croppable(self) -> bool:
        """Windows that have slid and recurrent states can't go back: those conversations are computed again."""
        slid = any(
            layer.window and self.cache.get_seq_length() >= layer.window for layer in self.loaded.geometry.layers
        )
        return not slid and bool(self.cache.is_croppable)
