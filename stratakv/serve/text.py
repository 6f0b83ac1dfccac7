"""From tokens to text as it becomes certain: whole characters only, and no beginning of a stop string."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

REPLACEMENT = "\ufffd"


class TextStream:
    """The text of one answer. stop: texts before which it ends. shown: special tokens that are part of it, and their text.
    before: tokens just before it, without which many a tokenizer drops the blank that the answer begins with.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop: tuple[str, ...] = (),
        shown: Mapping[int, str] | None = None,
        before: Sequence[int] = (),
    ) -> None:
        self.tokenizer, self._shown = tokenizer, shown or {}
        self.stop = tuple(text for text in stop if text)
        self.stopped: str | None = None
        self._tokens: list[int] = list(before)
        self._context, self._read = 0, len(before)  # tokens[context:read] is out already and shapes what follows
        self._held = ""

    def add(self, token: int) -> tuple[str, str]:
        """(text that this token completes, text that is certain now). Sets `stopped` when a stop string is complete."""
        self._tokens.append(token)
        new = self._decode_new()
        return new, self._certain(new)

    def flush(self) -> str:
        """The text that was held back because a stop string could have begun there. A half character is dropped."""
        held, self._held = self._held, ""
        return held

    def _decode_new(self) -> str:
        if self._tokens[-1] in self._shown:
            self._context = self._read = len(self._tokens)
            return self._shown[self._tokens[-1]]
        before = self._decode(self._tokens[self._context : self._read])
        text = self._decode(self._tokens[self._context :])
        if len(text) <= len(before) or text.endswith(REPLACEMENT):
            return ""
        self._context, self._read = self._read, len(self._tokens)
        return text[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        if not tokens:
            return ""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:  # a tenth of the time of the wrapper around it
            return str(backend.decode(tokens, skip_special_tokens=True))
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _certain(self, new: str) -> str:
        if not self.stop:
            return new
        text = self._held + new
        found = [(at, stop) for stop in self.stop if (at := text.find(stop)) >= 0]
        if found:
            at, self.stopped = min(found)
            self._held = ""
            return text[:at]
        keep = max((_overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that is a beginning of stop."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
