"""Text comes out when it is certain: whole characters, nothing of a stop string."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.engine.load import LoadedModel
from stratakv.serve.text import TextStream


class Bytes:
    """A tokenizer with a token a byte."""

    def decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        return bytes(tokens).decode("utf-8", errors="replace")


def streamed(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(Bytes(), stop)
    out = []
    for byte in text.encode():
        out.append(stream.add(byte)[1])
        if stream.stopped is not None:
            break
    out.append(stream.flush())
    return out, stream


def test_characters_come_whole() -> None:
    out, _ = streamed("a€🙂")
    assert [piece for piece in out if piece] == ["a", "€", "🙂"]
    half, _ = streamed("a")
    assert "".join(half) == "a"


def test_half_a_character_at_the_end_is_dropped() -> None:
    stream = TextStream(Bytes())
    texts = [stream.add(byte)[1] for byte in "é".encode()[:1]]
    assert "".join([*texts, stream.flush()]) == ""


@pytest.mark.parametrize(
    ("text", "stop", "expected", "found"),
    [
        ("hello END more", ("END",), "hello ", "END"),
        ("hello EN more", ("END",), "hello EN more", None),
        ("aab", ("ab",), "a", "ab"),
        ("one\n\ntwo", ("\n\n", "w"), "one", "\n\n"),
        ("x", ("xyz", ""), "x", None),
        ("stop", ("stop",), "", "stop"),
    ],
)
def test_stop_strings(text: str, stop: tuple[str, ...], expected: str, found: str | None) -> None:
    out, stream = streamed(text, stop)
    assert ("".join(out), stream.stopped) == (expected, found)


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(alphabet="abé🙂 ", max_size=30),
    stop=st.lists(st.text(alphabet="abé", min_size=1, max_size=3), max_size=3),
)
def test_the_pieces_are_the_text_before_the_first_stop(text: str, stop: list[str]) -> None:
    out, stream = streamed(text, tuple(stop))
    joined = "".join(out)
    assert text.startswith(joined)
    assert not any(one in joined for one in stop)
    if stream.stopped is None:
        assert joined == text
    else:
        assert text[len(joined) :].startswith(stream.stopped)


def test_a_real_tokenizer_gives_its_own_text_back(loaded: LoadedModel) -> None:
    text = "Café, naïve — “quoted” 🙂 words\n\n  and spaces."
    ids: list[int] = loaded.tokenizer(text, add_special_tokens=False).input_ids
    stream: Any = TextStream(loaded.tokenizer)
    assert "".join(stream.add(id_)[1] for id_ in ids) == loaded.tokenizer.decode(ids)


def test_special_tokens_that_are_shown_are_part_of_the_text() -> None:
    stream = TextStream(Bytes(), (), {7: "<think>"})
    assert stream.add(7) == ("<think>", "<think>")
    assert [stream.add(byte)[1] for byte in "é".encode()] == ["", "é"]
    assert stream.add("é".encode()[0]) == ("", "") and stream.add(7)[1] == "<think>"
    assert stream.add(ord("a"))[1] == "a"


class Blanks:
    """A tokenizer whose text loses the blank that it begins with, as Llama 2's does."""

    words = ("Once", "▁upon", "▁a", "▁time")

    def decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(self.words[token] for token in tokens).replace("▁", " ").removeprefix(" ")


def test_the_blank_that_an_answer_begins_with() -> None:
    stream = TextStream(Blanks(), before=[0])
    assert [stream.add(token)[1] for token in (1, 2, 3)] == [" upon", " a", " time"]
