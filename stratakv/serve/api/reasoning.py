"""What a model thinks before it answers: found by the marks of its chat template, and kept apart from what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Marks:
    """Texts around what a model thinks. Qwen, DeepSeek and most others: <think> and </think>."""

    begin: str
    end: str


_KNOWN = (
    Marks("<think>", "</think>"),
    Marks("[THINK]", "[/THINK]"),  # Magistral
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    Marks("<seed:think>", "</seed:think>"),
)


def marks_of(template: str | None) -> Marks | None:
    """The marks that a chat template knows, None: its model doesn't think aloud."""
    return next((marks for marks in _KNOWN if template and marks.end in template), None)


def thinking_variables(think: bool | None = None, effort: str | None = None) -> dict[str, Any]:
    """Variables by which templates are told whether to think, and how hard. effort: "none" is not at all.

    think None: as the template does by itself. Templates that don't know a variable don't look at it.
    """
    if think is None and effort == "none":
        think = False
    variables: dict[str, Any] = {} if think is None else {"enable_thinking": think, "thinking": think}
    if effort is not None and effort != "none":
        variables["reasoning_effort"] = effort
    return variables


class ReasoningText:
    """Parts an answer, as it streams, into what the model thinks and what it says.

    marks None: nothing is parted. opened: the prompt ends with the beginning mark, so that the answer begins with a thought.
    Blanks around a thought are dropped; a mark counts at the beginning of the answer only.
    """

    def __init__(self, marks: Marks | None, *, opened: bool = False) -> None:
        self._marks = marks
        self._held = ""
        self._state = "said" if marks is None else "thinking" if opened else "start"
        self._sent = False  # something of the thought is out

    @property
    def thinking(self) -> bool:
        """Whether the next text belongs to a thought."""
        return self._state == "thinking"

    def feed(self, text: str) -> tuple[str, str]:
        """(what is certainly thought, what is certainly said) with this text."""
        self._held += text
        thought = ""
        if self._state == "start":
            self._begin()
        if self._state == "thinking":
            thought = self._think()
        if self._state == "between":
            self._held = self._held.lstrip()
            self._state = "said" if self._held else "between"
        said = ""
        if self._state == "said":
            said, self._held = self._held, ""
        return thought, said

    def close(self) -> tuple[str, str]:
        """The rest, at the end of the answer. A thought that was cut is a thought."""
        rest, self._held = self._held, ""
        if self._state == "thinking":
            return (rest if self._sent else rest.lstrip()).rstrip(), ""
        return "", rest

    def _begin(self) -> None:
        assert self._marks is not None
        head, begin = self._held.lstrip(), self._marks.begin
        if head.startswith(begin):
            self._state, self._held = "thinking", head[len(begin) :]
        elif not begin.startswith(head):
            self._state = "said"

    def _think(self) -> str:
        assert self._marks is not None
        if not self._sent:
            self._held = self._held.lstrip()
        thought, mark, rest = self._held.partition(self._marks.end)
        if mark:
            self._state, self._held = "between", rest
            return thought.rstrip()
        kept = max(
            (n for n in range(1, len(self._marks.end)) if thought.endswith(self._marks.end[:n])),
            default=0,
        )
        certain = thought[: len(thought) - kept].rstrip()
        self._held = thought[len(certain) :]
        self._sent = self._sent or bool(certain)
        return certain
