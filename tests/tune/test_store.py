from __future__ import annotations

from pathlib import Path

import pytest

from stratakv.errors import UserError
from stratakv.tune.store import Store

KEY = {"model": "m", "text": "t"}


def test_what_was_kept_is_there_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs", KEY)
    assert store.get("kld", "a") is None
    store.put("kld", "a", {"kld": [0.1, 2e-9]})
    store.put("gradient", "a", {"damage": []})
    store.close()
    again = Store(tmp_path / "runs", KEY)
    assert again.get("kld", "a") == {"kind": "kld", "name": "a", "kld": [0.1, 2e-9]}
    assert again.get("gradient", "a") is not None
    assert Store(tmp_path / "runs", {**KEY, "text": "other"}).get("kld", "a") is None, "other text, other file"


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path, cut: int) -> None:
    store = Store(tmp_path, KEY)
    store.put("kld", "a", {"kld": [0.25]})
    store.put("kld", "b", {"kld": [0.5]})
    store.close()
    content = store.path.read_bytes()
    store.path.write_bytes(content[:-cut])
    again = Store(tmp_path, KEY)
    assert again.get("kld", "a") is not None
    assert again.get("kld", "b") is None
    again.put("kld", "b", {"kld": [0.5]})
    again.close()
    assert store.path.read_bytes() == content


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot keep measurements"):
        Store(tmp_path / "file", KEY)


@pytest.mark.parametrize("line", [b"{", b"[]", b"7", b'{"kind": "kld"}', b"\xff\xfe"])
def test_a_damaged_line_is_named_with_what_to_do(tmp_path: Path, line: bytes) -> None:
    store = Store(tmp_path, KEY)
    store.put("kld", "a", {"kld": [0.25]})
    store.close()
    with store.path.open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(UserError, match=f"line 3 of {store.path} is no measurement: remove the file"):
        Store(tmp_path, KEY)
