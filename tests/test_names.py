"""One noun, one thing: a noun of this list names at most one class, or the module that is about it, and no other."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest

import stratakv

ROOT = Path(stratakv.__file__).parent
NOUNS = ("answer", "blocktable", "plan", "sensitivity", "sequence", "setting")
ENDINGS = (".py", ".cpp", ".h")


def singular(name: str) -> str:
    """A name as the list has it: BlockTable and block_tables are both blocktable."""
    return name.replace("_", "").lower().removesuffix("s")


def uses(noun: str, sources: dict[str, str]) -> list[str]:
    """Modules, with the class in them, that have the noun for a name. sources: text by path without its ending."""
    found = []
    for path, text in sources.items():
        classes = [name for name in class_names(path, text) if singular(name) == noun]
        if classes or singular(path.rpartition("/")[2]) == noun:
            found.append(":".join([path, *classes]))
    return found


def class_names(path: str, text: str) -> Iterable[str]:
    if path.endswith((".h", ".cpp")):
        words = text.replace("{", " ").split()
        return [after for word, after in pairwise(words) if word in ("class", "struct")]
    return [node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]


def package_sources() -> dict[str, str]:
    """A command's module is called what the command is called, so those are left out."""
    paths = [path for path in ROOT.rglob("*") if path.suffix in ENDINGS and path.relative_to(ROOT).parts[0] != "cli"]
    return {
        path.relative_to(ROOT).as_posix().removesuffix(".py"): path.read_text(encoding="utf-8")
        for path in sorted(paths)
    }


@pytest.mark.parametrize("noun", NOUNS)
def test_a_noun_is_one_thing(noun: str) -> None:
    found = uses(noun, package_sources())
    assert len(found) <= 1, f"{noun} is the name of {', '.join(found)}"


def test_what_reads_names_sees_every_kind() -> None:
    sources = {
        "serve/answer": "class Answer: pass",
        "api/answers": "",
        "api/choice": "def f():\n    class _Answer: pass",
        "cpu/sums.h": "namespace {\nclass Answers{\n};",
        "api/answer_text": "class AnswerText: pass",
    }
    assert uses("answer", sources) == ["serve/answer:Answer", "api/answers", "api/choice:_Answer", "cpu/sums.h:Answers"]
