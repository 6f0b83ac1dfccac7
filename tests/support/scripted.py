"""Models that say what a test wants: the draw of each token is scripted, everything around it is the real server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from servers import embedded

from stratakv.serve.sampling import Sampler

THINKING_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.reasoning_content %}<think>\n{{ message.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ message.content }}{% if tools and loop.first %}{{ tools | tojson }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% elif reasoning_effort is defined %}effort {{ reasoning_effort }}<think>\n{% else %}<think>\n{% endif %}{% endif %}"
)


@contextmanager
def saying(text: str) -> Iterator[None]:
    """Every answer is this text, token by token, and the end; masks of grammars must allow it."""
    tokenizer = embedded().tokenizer
    script = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]

    def draw(self: Any, logits: Any, tokens: Any, mask: Any = None) -> int:
        said = self.__dict__.setdefault("said", iter(script))
        token = int(next(said))
        assert mask is None or bool(mask[token]), f"the grammar doesn't allow {tokenizer.decode([token])!r}"
        return token

    with patch.object(Sampler, "draw", draw):
        yield


@contextmanager
def thinking_template() -> Iterator[None]:
    """Servers that start within have a model whose template opens a thought."""
    tokenizer = embedded().tokenizer
    before, tokenizer.chat_template = tokenizer.chat_template, THINKING_TEMPLATE
    try:
        yield
    finally:
        tokenizer.chat_template = before
