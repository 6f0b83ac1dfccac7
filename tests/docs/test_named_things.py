"""Files, modules, classes and functions that the docs name exist."""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Of llama.cpp, of an answer of the server, of torch, of Linux
ELSEWHERE = {"llama-kv-cache.cpp", "stratakv.lost", "custom_op", "AnonHugePages"}
# The code that may hold a name; what the docs quote of transformers is used by it too
SOURCES = ("stratakv", "tests", "benchmarks", "tools")

_FILE = re.compile(r"(?<![\w./-])(?:[\w*-]+/)*[\w*-]+\.(?:py|pyi|h|cpp|toml|md)(?![\w/])")
_FOLDER = re.compile(
    r"`((?:stratakv|tests|tools|benchmarks|docs)(?:/[\w*-]+)+/?)(?<!/\d)`"
)  # not "stratakv/show/1", a schema
_MODULE = re.compile(r"(?<![\w/.-])stratakv(?:\.\w+)+")
_CLASS = re.compile(r"[A-Z][a-z0-9]+[A-Z]\w+|KV[A-Z]\w+")
_NAME = re.compile(r"_?[a-z]\w*_\w+(?=\(|$)|\w+(?=\()")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def spans(text: str) -> list[str]:
    """What stands in single backquotes outside of blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def exists(path: str, page: Path) -> bool:
    """As the docs write paths: from the root, from the package, or from the page's folder; "*" stands for any name."""
    return any(next(base.glob(path), None) for base in (ROOT, ROOT / "stratakv", page.parent))


def somewhere(name: str) -> bool:
    """A bare file name, of a file that the text around it places."""
    return any(next((ROOT / folder).rglob(name), None) for folder in SOURCES)


def missing_files(text: str, page: Path) -> list[str]:
    found = [*_FILE.findall(" ".join(spans(text))), *(folder.rstrip("/") for folder in _FOLDER.findall(text))]
    return [
        path
        for path in found
        if path not in ELSEWHERE and not (exists(path, page) or ("/" not in path and somewhere(path)))
    ]


def missing_modules(text: str) -> list[str]:
    return [name for name in sorted(set(_MODULE.findall(text)) - ELSEWHERE) if not importable(name)]


def importable(name: str) -> bool:
    """A module, or what a module has by that name."""
    module, *rest = name.split(".")
    found = import_module(module)
    for part in rest:
        module = f"{module}.{part}"
        try:
            found = import_module(module)
        except ModuleNotFoundError as error:
            if error.name and not error.name.startswith("stratakv"):
                return True  # the module is there, the package of an extra that it needs isn't
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
    return True


def missing_names(text: str) -> list[str]:
    given = spans(text)
    wanted = {name for span in given for name in _CLASS.findall(span) if re.fullmatch(r"[\w.()]+", span)}
    wanted |= {name for span in given for name in _NAME.findall(span) if re.fullmatch(r"[\w.]+(\(.*\))?", span)}
    return sorted(wanted - words() - ELSEWHERE)


@cache
def words() -> set[str]:
    """All words of the code, these tests of docs left out."""
    kinds = (".py", ".pyi", ".h", ".cpp", ".js", ".html")
    files = [file for folder in SOURCES for file in (ROOT / folder).rglob("*") if file.suffix in kinds]
    kept = [file for file in files if Path(__file__).parent not in file.parents]
    return set().union(*(re.findall(r"\w+", text_of(file)) for file in kept))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page):
    assert missing_files(text_of(page), page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_modules_exist(page):
    assert missing_modules(text_of(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_classes_and_functions_exist(page):
    assert missing_names(text_of(page)) == []


def test_what_is_gone_is_found():
    page = ROOT / "docs" / "made-up.md"
    text = "`stratakv/cache/store.py`, `serve/absent.py`, `stratakv/gone`, `stratakv.cache.KVCache`"
    text += ", `PackedView`, `packed_away(x)`"
    assert missing_files(text, page) == ["stratakv/cache/store.py", "serve/absent.py", "stratakv/gone"]
    assert missing_modules(text) == ["stratakv.cache.KVCache"]
    assert missing_names(text) == ["PackedView", "packed_away"]


def test_what_is_there_is_found():
    page = ROOT / "docs" / "made-up.md"
    text = "`pages/pool.py`, `stratakv/engine/cache`, `parts.py`, `stratakv/show/1`"
    text += ", `stratakv.engine.cache.KVCache`, `stratakv.use`, `kernel_for(layout)`"
    assert missing_files(text, page) == missing_modules(text) == missing_names(text) == []
