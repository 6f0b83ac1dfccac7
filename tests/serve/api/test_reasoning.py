"""What a model thinks is parted from what it says, however the text is cut while it streams."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratakv.serve.api.answer_text import AnswerText
from stratakv.serve.api.reasoning import Marks, ReasoningText, marks_of, thinking_variables
from stratakv.serve.request import TokenInfo

THINK = Marks("<think>", "</think>")


def part(text: str, *, opened: bool = False, marks: Marks | None = THINK) -> tuple[str, str]:
    through = ReasoningText(marks, opened=opened)
    first, last = through.feed(text), through.close()
    return first[0] + last[0], first[1] + last[1]


@pytest.mark.parametrize(
    ("text", "thought", "said"),
    [
        ("<think>\nhm\n</think>\n\nyes", "hm", "yes"),
        ("\n <think>hm</think>yes", "hm", "yes"),
        ("<think></think>yes", "", "yes"),
        ("<think>cut", "cut", ""),
        ("<think>a < b </", "a < b </", ""),
        ("yes <think>no</think>", "", "yes <think>no</think>"),
        (" <thin air", "", " <thin air"),
        ("<think>a</think>b</think>c", "a", "b</think>c"),
        ("", "", ""),
    ],
)
def test_forms(text, thought, said):
    assert part(text) == (thought, said)


def test_a_thought_that_the_prompt_has_opened():
    assert part("hm\n</think>\nyes", opened=True) == ("hm", "yes")
    assert part("hm", opened=True) == ("hm", "")
    assert part("<think>hm</think>yes", marks=None) == ("", "<think>hm</think>yes")


PARTS = st.sampled_from(["a", " ", "\n", "<", "<think>", "</think>", "</thi", "nk>", "é"])


@given(st.lists(PARTS, max_size=8), st.booleans(), st.data())
def test_streaming_says_what_the_whole_text_says(parts, opened, data):
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    streamed = ReasoningText(THINK, opened=opened)
    out = [streamed.feed(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    out.append(streamed.close())
    assert ("".join(t for t, _ in out), "".join(s for _, s in out)) == part(text, opened=opened)


def test_thoughts_are_no_tool_calls():
    call = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    reader = AnswerText(["look"], marks=THINK)
    parts = reader.whole(f"<think>I could {call}</think>{call}", ())
    assert parts.thought == f"I could {call}" and parts.said == "" and [c.name for c in parts.calls] == ["look"]


def test_thinking_tokens_are_counted():
    texts = ["<think>", "a", " b", "</think>", " c", " d"]
    tokens = [TokenInfo(i, text) for i, text in enumerate(texts)]
    whole, streamed = AnswerText(marks=THINK), AnswerText(marks=THINK)
    whole.whole("".join(texts), tokens)
    for text in texts:
        streamed.feed(text, 1)
    assert whole.thinking_tokens == streamed.thinking_tokens == 4


def test_marks_and_variables():
    assert marks_of("{% if enable_thinking %}<think>\n\n</think>{% endif %}") == THINK
    assert marks_of("{{ messages[0].content.split('[/THINK]') }}") == Marks("[THINK]", "[/THINK]")
    assert marks_of("plain") is marks_of(None) is None
    assert thinking_variables() == {}
    assert thinking_variables(effort="none")["enable_thinking"] is False
    assert thinking_variables(True, "low") == {"enable_thinking": True, "thinking": True, "reasoning_effort": "low"}
