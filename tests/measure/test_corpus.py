from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from stratakv.errors import UserError
from stratakv.measure.corpus import Text, cut, read_text


class Letters:
    """A tokenizer of one token a character, BOS 0 if wanted."""

    bos_token_id = 0

    def __init__(self, *, adds_bos: bool) -> None:
        self.adds_bos = adds_bos

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> SimpleNamespace:
        ids = [ord(letter) for letter in text]
        return SimpleNamespace(input_ids=[0, *ids] if self.adds_bos and add_special_tokens else ids)


def text(length: int) -> Text:
    return Text("t.txt", "".join(chr(97 + i % 26) for i in range(length)), "")


def test_contexts_follow_each_other_and_the_partial_one_is_dropped() -> None:
    made = cut(text(29), Letters(adds_bos=False), 10)
    assert made.ids.shape == (2, 10)
    assert made.ids.flatten().tolist() == [97 + i for i in range(20)]
    assert made.tokens == 29
    assert made.warnings == ()


def test_bos_comes_before_the_text_and_replaces_the_first_token_of_each_context() -> None:
    made = cut(text(29), Letters(adds_bos=True), 10)
    assert made.tokens == 30
    assert made.ids.shape == (3, 10)
    assert made.ids[:, 0].tolist() == [0, 0, 0]
    assert made.ids[1, 1:].tolist() == [97 + 10 + i for i in range(9)], "the token under BOS is lost, none is shifted"


@pytest.mark.parametrize(("context", "scored"), [(8, 3), (9, 4), (512, 255), (513, 256)])
def test_scored_predictions(context: int, scored: int) -> None:
    assert cut(text(600), Letters(adds_bos=False), context).scored == scored


def test_chunks_takes_the_first_ones() -> None:
    assert cut(text(100), Letters(adds_bos=False), 10, 3).ids.shape == (3, 10)


def test_more_chunks_than_there_are_is_said() -> None:
    made = cut(text(29), Letters(adds_bos=False), 10, 5)
    assert len(made.ids) == 2
    assert made.warnings == ("5 contexts were asked for, t.txt has 2 of 10 tokens: all 2 are used",)


def test_a_context_beyond_the_models_goes_on_with_the_reason() -> None:
    (warning,) = cut(text(29), Letters(adds_bos=False), 20, model_context=16).warnings
    assert "context 20 is beyond the model's 16" in warning
    assert "not trained on later positions" in warning
    assert cut(text(29), Letters(adds_bos=False), 20, model_context=0).warnings == ()


@pytest.mark.parametrize(
    ("length", "context", "chunks", "message"),
    [
        (29, 30, None, "has 29 tokens, one context needs 30"),
        (29, 7, None, "-c 7: a context needs at least 8"),
        (29, -1, None, "-c -1"),
        (29, 10, 0, "--chunks 0: at least 1"),
    ],
)
def test_what_cannot_be_cut_is_refused(length: int, context: int, chunks: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cut(text(length), Letters(adds_bos=False), context, chunks)


def test_a_file_is_read_with_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Grüße\r\nx".encode())
    read = read_text(path)
    assert read == Text("a.txt", "Grüße\r\nx", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"caf\xe9 noir", "not UTF-8 \\(byte 0xe9 at offset 3\\)"), (b" \n", "is empty"), (b"", "is empty")],
)
def test_unreadable_texts_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_text(path)


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_text(tmp_path / "missing.txt")
    with pytest.raises(UserError, match="cannot read the text"):
        read_text(tmp_path)
