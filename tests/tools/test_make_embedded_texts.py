from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from make_embedded_texts import chapters

from stratakv.assets import judging_text, tuning_text

ROOT = Path(__file__).resolve().parents[2]
DRACULA = ROOT.parent / "shared" / "corpus" / "heldout" / "dracula.txt"

BOOK = b"CHAPTER I\n\nCHAPTER II\n\nCHAPTER III\n\nCHAPTER I\n\none\n\nCHAPTER II\n\ntwo\n\nCHAPTER III\n\nthree\n"


def test_chapters_skip_the_table_of_contents() -> None:
    assert chapters(BOOK, "I", "II") == b"CHAPTER I\n\none\n\nCHAPTER II\n\ntwo\n\n"
    assert chapters(BOOK, "III", "III") == b"CHAPTER III\n\nthree\n"


def test_a_missing_chapter_is_named() -> None:
    with pytest.raises(ValueError, match="no chapter IV; there are I, II, III"):
        chapters(BOOK, "I", "IV")


@pytest.mark.skipif(not DRACULA.exists(), reason="needs the held-out texts beside the checkout")
def test_the_committed_texts_are_disjoint_pieces_of_the_book(tmp_path: Path) -> None:
    script = ROOT / "tools" / "make_embedded_texts.py"
    subprocess.run([sys.executable, script, DRACULA, "--output", tmp_path], check=True, capture_output=True)
    book = DRACULA.read_bytes()
    places = []
    for path in (tuning_text(), judging_text()):
        text = path.read_bytes()
        assert (tmp_path / path.name).read_bytes() == text
        places.append((book.index(text), book.index(text) + len(text)))
    (_, end), (start, _) = places
    assert start - end > 300_000
