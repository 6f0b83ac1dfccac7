"""One request while it waits and runs: its tokens, how far they are computed, its block tables."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from stratakv.pages.layout import PAGE_TOKENS
from stratakv.pages.table import BlockTable
from stratakv.serve.request import GenerationRequest


@dataclass(eq=False)
class Sequence:
    """tokens: prompt and answer so far. computed: how many of them are in pages. keys: of the prompt's whole pages.

    Tokens of the prompt are always computed by prefill attention, tokens of the answer always by decode attention, also when
    they are computed again after a preemption, so that the same tokens meet the same arithmetic.
    """

    id: int
    request: GenerationRequest
    tokens: list[int]
    keys: list[bytes]
    tables: list[BlockTable]
    slot: int | None = None
    computed: int = 0
    cached: int = 0
    published: int = 0  # pages
    cancelled: bool = False
    started: float | None = None
    first_token: float | None = None
    private: Any = None  # what the model runner keeps for it

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt)

    @property
    def generated(self) -> int:
        """Tokens of the answer."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def in_prompt(self) -> bool:
        """Whether tokens of the prompt are still to be computed."""
        return self.computed < self.prompt_tokens

    @property
    def pending(self) -> int:
        """Tokens to compute before the next one can be drawn."""
        return len(self.tokens) - self.computed


def page_keys(prompt: tuple[int, ...], salt: bytes) -> list[bytes]:
    """A key for each whole page of a prompt, made from its tokens and the key before it."""
    keys, key = [], salt
    data = np.array(prompt, dtype="<i4").tobytes()
    for end in range(PAGE_TOKENS, len(prompt) + 1, PAGE_TOKENS):
        key = hashlib.blake2b(key + data[4 * (end - PAGE_TOKENS) : 4 * end], digest_size=16).digest()
        keys.append(key)
    return keys
