"""Text for measuring: read as UTF-8, tokenized as a whole, cut into contexts as llama.cpp's perplexity tool does it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stratakv.errors import UserError

MIN_CONTEXT = 8


@dataclass(frozen=True)
class Text:
    """A text with the sha256 of the file's bytes."""

    name: str
    content: str
    sha256: str


@dataclass(frozen=True)
class Contexts:
    """A text cut for measuring.

    ids: int64 [contexts, context] token ids, BOS in the first column when the model's tokenizer adds one. tokens: of the
    whole text, BOS included. warnings: what the user should know about the cut. start: position of the first prediction that
    is scored, None for half a context.
    """

    text: Text
    ids: torch.Tensor
    tokens: int
    warnings: tuple[str, ...] = ()
    start: int | None = None

    @property
    def context(self) -> int:
        """Tokens of one context."""
        return int(self.ids.shape[1])

    @property
    def first(self) -> int:
        """The position at which the first scored prediction is made; the last one is made at context - 2."""
        return self.context // 2 if self.start is None else self.start

    @property
    def scored(self) -> int:
        """Predictions of one context that are scored."""
        return self.context - 1 - self.first


def read_text(path: str | Path) -> Text:
    """Read a UTF-8 file. Raises UserError for one that cannot be read, is empty, or is not UTF-8."""
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the text {path}: {error.strerror or error}; give a UTF-8 text file") from error
    try:
        content = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"the text {path} is not UTF-8 (byte {raw[error.start]:#04x} at offset {error.start}): convert it, for example "
            "with iconv -t UTF-8"
        ) from error
    if not content.strip():
        raise UserError(f"the text {path} is empty: give a UTF-8 text file")
    return Text(path.name, content, hashlib.sha256(raw).hexdigest())


def cut(text: Text, tokenizer: Any, context: int, chunks: int | None = None, model_context: int = 0) -> Contexts:
    """The first `chunks` (None: all) contexts of `context` tokens; a last partial one is dropped.

    tokenizer: of transformers. model_context: the length the model was trained for, 0 when unknown. Raises UserError for a
    text shorter than one context, and for a context or a number of chunks that cannot be.
    """
    if context < MIN_CONTEXT:
        raise UserError(f"-c {context}: a context needs at least {MIN_CONTEXT} tokens")
    if chunks is not None and chunks < 1:
        raise UserError(f"--chunks {chunks}: at least 1 context")
    bos, plain = tokens_of(text, tokenizer)
    tokens = torch.tensor([*bos, *plain], dtype=torch.int64)
    there = len(tokens) // context
    if there == 0:
        raise UserError(
            f"the text {text.name} has {len(tokens)} tokens, one context needs {context}: give a longer text or a smaller -c"
        )
    ids = tokens[: there * context].reshape(there, context)[:chunks].clone()
    if bos:
        ids[:, 0] = bos[0]
    return Contexts(text, ids, len(tokens), tuple(_warnings(text, context, chunks, there, model_context)))


def tokens_of(text: Text, tokenizer: Any) -> tuple[list[int], list[int]]:
    """([BOS] if the tokenizer puts it before a text, else [], and the text's own tokens)."""
    bos = tokenizer.bos_token_id
    added = bos is not None and tokenizer("a").input_ids[:1] == [bos]
    return [bos] if added else [], tokenizer(text.content, add_special_tokens=False, verbose=False).input_ids


def _warnings(text: Text, context: int, chunks: int | None, there: int, model_context: int) -> list[str]:
    warnings = []
    if chunks is not None and chunks > there:
        warnings.append(
            f"{chunks} contexts were asked for, {text.name} has {there} of {context} tokens: all {there} are used"
        )
    if 0 < model_context < context:
        warnings.append(
            f"context {context} is beyond the model's {model_context}: it was not trained on later positions, so quality falls "
            "there whatever the types, and differences between profiles there say little"
        )
    return warnings
