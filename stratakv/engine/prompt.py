"""From a prompt's text to its tokens, with one first token and no second."""

from __future__ import annotations

import warnings
from typing import Any


def prompt_ids(tokenizer: Any, text: str, *, special: bool = True, **options: Any) -> list[int]:
    """Token ids of text. special: add what the model wants at the beginning; options: of the tokenizer's call.

    A text that brings the first token (BOS) along, for a tokenizer that adds it too, gets one and a warning: models have never
    seen two.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=special, **options).input_ids
    first = tokenizer.bos_token_id
    if special and first is not None and ids[:2] == [first, first] and _adds(tokenizer, first):
        warnings.warn(
            f"the prompt begins with {tokenizer.bos_token}, which the tokenizer adds by itself: one of the two is left out",
            RuntimeWarning,
            stacklevel=2,
        )
        return ids[1:]
    return ids


def _adds(tokenizer: Any, first: int) -> bool:
    return list(tokenizer("", add_special_tokens=True).input_ids[:1]) == [first]
