"""Sizes as people write them, strictly."""

from __future__ import annotations

import pytest

from stratakv.cli.sizes import parse_memory, parse_tokens
from stratakv.errors import UserError
from stratakv.sizes import size_text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2**31),
        ("2GB", 2 * 10**9),
        ("512MiB", 2**29),
        ("1.5 GiB", 3 * 2**29),
        ("2gib", 2**31),
        ("7B", 7),
        ("1TiB", 2**40),
    ],
)
def test_memory(text, size):
    assert parse_memory(text, "--memory") == size


@pytest.mark.parametrize(
    "text",
    ["2", "2G", "GiB", "-1GiB", "0GiB", "1e3MB", "2 GiB more", "", "٢GiB", "1.GiB", "0.4B", "1025TiB", "9" * 400 + "B"],
)
def test_memory_that_is_refused(text):
    with pytest.raises(UserError, match="--memory .* such as 2GiB"):
        parse_memory(text, "--memory")


@pytest.mark.parametrize(("text", "tokens"), [("131072", 131072), ("128k", 131072), ("1M", 1048576), ("1", 1)])
def test_tokens(text, tokens):
    assert parse_tokens(text, "-c") == tokens


@pytest.mark.parametrize("text", ["0", "-1", "1.5k", "k", "", "128kb", "9" * 20, "9" * 14 + "m"])
def test_tokens_that_are_refused(text):
    with pytest.raises(UserError, match="-c .* such as 128k"):
        parse_tokens(text, "-c")


def test_size_text():
    assert [size_text(n) for n in (96, 1536, 3 * 2**29)] == ["96 bytes", "1.50 KiB", "1.50 GiB"]
