"""Tool calls in text: found where they are, never where they are not, however the text is cut while it streams."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratakv.serve.api.tools import ChatText, messages_without_tools, parse_calls

NAMES = ("weather", "time")
WEATHER = '{"name": "weather", "arguments": {"city": "Ulm"}}'
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"<tool_call>\n{WEATHER}\n</tool_call>", ""),
        (f"I look. <tool_call>{WEATHER}</tool_call>", "I look."),
        (f"<tool_call>{WEATHER}", ""),
        (f"[TOOL_CALLS] [{WEATHER}]", ""),
        (f"<|python_tag|>{WEATHER}", ""),
        (WEATHER, ""),
        ('{"name": "weather", "parameters": {"city": "Ulm"}}', ""),
        ('{"type": "function", "function": ' + WEATHER + "}", ""),
        ('{"name": "weather", "arguments": "{\\"city\\": \\"Ulm\\"}"}', ""),
    ],
)
def test_forms_of_calls(text, said):
    before, calls = parse_calls(text, NAMES)
    assert before == said
    assert [(call.name, call.arguments) for call in calls] == [("weather", {"city": "Ulm"})]
    assert json.loads(calls[0].openai()["function"]["arguments"]) == {"city": "Ulm"}


def test_several_calls():
    other = '{"name": "time", "arguments": {}}'
    for text in (
        f"<tool_call>{WEATHER}</tool_call><tool_call>{other}</tool_call>",
        f"[{WEATHER}, {other}]",
        f"{WEATHER}; {other}",
    ):
        calls = parse_calls(text, NAMES)[1]
        assert [call.name for call in calls] == ["weather", "time"]
        assert len({call.id for call in calls}) == 2


@pytest.mark.parametrize(
    "text",
    [
        "no call",
        '{"name": "unknown", "arguments": {}}',
        '{"name": "weather", "arguments": 3}',
        '{"name": ["weather"]}',
        '{"city": "Ulm"}',
        "[1, 2]",
        "{",
        "<tool_call>not JSON</tool_call>",
        "[" * 100_000,
        "",
    ],
)
def test_what_is_no_call_stays_text(text):
    assert parse_calls(text, NAMES) == (text, [])


PARTS = st.sampled_from(
    ["a", " ", "{", "<", "<tool_call>", "</tool_call>", WEATHER, "[", "[TOOL_CALLS]", "\n", "<|python_tag|>", "é"]
)


@given(st.lists(PARTS, max_size=8), st.data())
def test_streaming_says_what_the_whole_text_says(parts, data):
    text = "".join(parts)
    whole = ChatText(NAMES)
    expected = whole.feed(text), *whole.close()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    streamed = ChatText(NAMES)
    out = "".join(streamed.feed(piece) for piece in pieces)
    rest, calls = streamed.close()
    assert out + rest == expected[0] + expected[1]
    assert [call.name for call in calls] == [call.name for call in expected[2]]
    if not calls:
        assert out + rest == text


@given(st.text(max_size=40))
def test_without_tools_text_goes_through(text):
    through = ChatText()
    assert through.feed(text) == text and through.close() == ("", [])


def test_blanks_at_the_start_can_be_dropped():
    through = ChatText(strip=True)
    assert [through.feed(piece) for piece in (" ", "\n", " The", " end ")] == ["", "", "The", " end "]


def test_a_template_without_tools_gets_them_as_text():
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
    plain = messages_without_tools(
        [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [call]}], [TOOL]
    )
    assert [message["role"] for message in plain] == ["system", "user", "assistant"]
    assert '"weather"' in plain[0]["content"] and plain[2]["content"] == f"<tool_call>{WEATHER}</tool_call>"


def test_blanks_of_any_length_are_read_at_once():
    """Each blank was tried as the end of a call: half a minute for 64,000 of them, in which no answer went on."""
    text = "<tool_call>x" + " " * 200_000 + "y"
    begin = time.perf_counter()
    assert parse_calls(text, ("f",)) == (text, [])
    assert time.perf_counter() - begin < 2
