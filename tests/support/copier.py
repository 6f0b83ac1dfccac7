"""A model that can do one thing: look up what followed when it last read the tokens that it has just read.

Real models that copy are too slow for fast tests, and the embedded one doesn't. This one is an induction head and nothing else,
over the real packed cache: K of a token are the two tokens before it, Q the two newest ones, V the token itself.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig

from stratakv.engine.cache.geometry import geometry_of
from stratakv.engine.load import LoadedModel

VOCABULARY, DIM = 4096, 128
_SHARP, _LOUD = 40.0, 16.0  # of attention, and of the logits


class WordTokenizer:
    """Words, each with the space before it, and other characters; numbers are given as they come. BOS is 0."""

    bos_token_id = 0

    def __init__(self) -> None:
        self.known: dict[str, int] = {"<bos>": 0}

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> Any:
        pieces = re.findall(r" ?\w+|\W", text)
        ids = [self.known.setdefault(piece, len(self.known)) % VOCABULARY for piece in pieces]
        return SimpleNamespace(input_ids=[0, *ids] if add_special_tokens else ids)


class Copier:
    """Called as a causal language model of transformers is."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        self.config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=DIM,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=DIM,
            max_position_embeddings=4096,
        )
        table = torch.randn(VOCABULARY, DIM, generator=torch.Generator().manual_seed(0))
        self.table = table / table.norm(dim=-1, keepdim=True)
        self.before = [0, 0]

    def forward(self, input_ids: torch.Tensor, past_key_values: Any, use_cache: bool) -> Any:
        """Logits [1, tokens, vocabulary]."""
        start = past_key_values.get_seq_length()
        self.before = self.before if start else [0, 0]
        ids = [*self.before, *input_ids[0].tolist()]
        self.before = ids[-2:]
        rows = self.table[ids]
        pair = (rows[1:] + rows[:-1]) / 2**0.5
        k, v = past_key_values.update(pair[None, None, :-1], rows[None, None, 2:], 0)
        scores = _SHARP * (pair[1:] @ (k * 1.0)[0, 0].T)
        seen = torch.arange(scores.shape[1])[None] <= start + torch.arange(scores.shape[0])[:, None]
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return SimpleNamespace(logits=(_LOUD * weights @ (v * 1.0)[0, 0] @ self.table.T)[None])

    __call__ = forward


def loaded_copier() -> LoadedModel:
    """The copier as the commands that measure take it."""
    model: Any = Copier()
    return LoadedModel(model, WordTokenizer(), "copier", "0" * 64, geometry_of(model.config, "copier"), 0)
