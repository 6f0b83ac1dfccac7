"""An answer's text on its way to a client: thoughts, what is said, calls of tools."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from stratakv.serve.api.reasoning import Marks, ReasoningText
from stratakv.serve.api.tools import ChatText, ToolCall
from stratakv.serve.request import TokenInfo


class Parts(NamedTuple):
    """What is certain now: a part of the thought, of what is said, and, at the end, the calls."""

    thought: str = ""
    said: str = ""
    calls: tuple[ToolCall, ...] = ()


class AnswerText:
    """names: of the offered tools; strip: as in ChatText; marks, opened: as in ReasoningText. most: calls that are let through.

    thinking_tokens: tokens so far that were thoughts.
    """

    def __init__(
        self,
        names: Collection[str] = (),
        *,
        strip: bool = False,
        marks: Marks | None = None,
        opened: bool = False,
        most: int | None = None,
    ) -> None:
        self._reasoning, self._text = ReasoningText(marks, opened=opened), ChatText(names, strip=strip)
        self._marks, self._most = marks, most
        self.thinking_tokens = 0

    def feed(self, text: str, tokens: int = 0) -> Parts:
        """What becomes certain with this text. tokens: that brought it."""
        before = self._reasoning.thinking
        thought, said = self._reasoning.feed(text)
        if before or self._reasoning.thinking:
            self.thinking_tokens += tokens
        return Parts(thought, self._text.feed(said))

    def close(self) -> Parts:
        """The rest, and the calls."""
        thought, said = self._reasoning.close()
        said = self._text.feed(said)
        rest, calls = self._text.close()
        return Parts(thought, said + rest, tuple(calls[: self._most]))

    def whole(self, text: str, tokens: Sequence[TokenInfo]) -> Parts:
        """All of a finished answer."""
        first, last = self.feed(text), self.close()
        thought = first.thought + last.thought
        if thought and self._marks is not None:
            so_far = ""
            for token in tokens:
                self.thinking_tokens += 1
                so_far += token.text
                if self._marks.end in so_far:
                    break
        return Parts(thought, first.said + last.said, last.calls)
