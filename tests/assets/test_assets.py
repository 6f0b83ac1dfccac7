from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from stratakv.assets import embedded_model, judging_text, tuning_text

README = embedded_model().with_name("README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [embedded_model(), tuning_text(), judging_text()], ids=lambda path: path.name)
def test_readme_names_each_file_with_its_sum(path: Path) -> None:
    row = next(line for line in README.splitlines() if f"`{path.name}`" in line)
    assert hashlib.sha256(path.read_bytes()).hexdigest() in row


def test_texts_have_no_paragraph_in_common() -> None:
    tuning, judging = (
        {line for line in path.read_text(encoding="utf-8").splitlines() if len(line) > 80}
        for path in (tuning_text(), judging_text())
    )
    assert len(tuning) > 250
    assert len(judging) > 250
    assert not tuning & judging


def test_texts_are_about_200_kb_of_whole_chapters() -> None:
    for path in (tuning_text(), judging_text()):
        text = path.read_bytes()
        assert 180_000 <= len(text) <= 220_000
        assert text.startswith(b"CHAPTER ")
        assert text.decode("utf-8").strip()[-1] in '."_!?*'
