"""A type's bits, family and rotation are the type's to say: no module reads them from how its name is spelled."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import stratakv
from stratakv.kvtypes import type_names

ROOT = Path(stratakv.__file__).parent
NAMES = type_names()
# Numbers in other texts: layers of a rule line, a library's version, a tensor's place, a list in a model's metadata
KNOWN = {
    "profile/rules.py: compile",
    "tune/llama_probe.py: findall",
    "weights/ggml.py: findall",
    "weights/mapping.py: sub",
}
STARTS, ENDS = ("startswith", "removeprefix"), ("endswith", "removesuffix")
SEARCHES = ("search", "match", "fullmatch", "findall", "finditer", "compile", "split", "sub")
HOLDERS = ("name", "type_", "each", "pair")


def readings(text: str) -> Iterator[str]:
    """What takes a type's name apart, as 'method(literal)'."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            method, found = node.func.attr, list(literals(node.args[0]))
            if method in STARTS:
                wrong = [part for part in found if any(name.startswith(part) for name in NAMES if name != part)]
            elif method in ENDS:
                wrong = [part for part in found if any(name.endswith(part) for name in NAMES if name != part)]
            else:
                wrong = [pattern for pattern in found if is_search(node.func) and finds_bits(pattern, method)]
            yield from (f"{method}({part})" for part in wrong if part)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "int" and node.args:
            of = node.args[0]
            if isinstance(of, ast.Subscript) and isinstance(of.value, ast.Name) and of.value.id in HOLDERS:
                yield f"int({ast.unparse(of)})"
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
            whole = isinstance(node.comparators[0], (ast.Tuple, ast.List, ast.Set, ast.Dict))
            parts = [part for part in literals(node.left) if any(part in name for name in NAMES if name != part)]
            yield from (
                f"{part} in {ast.unparse(node.comparators[0])}" for part in parts if len(part) > 1 and not whole
            )


def literals(node: ast.expr) -> Iterator[str]:
    for each in node.elts if isinstance(node, ast.Tuple) else (node,):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


def is_search(function: ast.Attribute) -> bool:
    return function.attr in SEARCHES and isinstance(function.value, ast.Name) and function.value.id == "re"


def finds_bits(pattern: str, method: str) -> bool:
    """Whether a pattern cuts digits out of some type's name."""
    find = {"match": re.match, "fullmatch": re.fullmatch}.get(method, re.search)
    found = [match for name in NAMES if (match := find(pattern, name))]
    return any((part or "").isdigit() for match in found for part in (match[0], *match.groups()))


@pytest.fixture(scope="module")
def found() -> set[str]:
    return {
        f"{path.relative_to(ROOT).as_posix()}: {reading}"
        for path in sorted(ROOT.rglob("*.py"))
        for reading in readings(path.read_text(encoding="utf-8"))
    }


def test_no_module_reads_a_type_from_its_name(found: set[str]) -> None:
    wrong = [each for each in sorted(found) if each.partition("(")[0] not in KNOWN]
    assert wrong == [], "ask the type: bits_per_value, nbytes, turbo, rotation"


def test_what_is_known_is_there(found: set[str]) -> None:
    assert sorted(KNOWN - {each.partition("(")[0] for each in found}) == []


@pytest.mark.parametrize(
    "line",
    [
        r're.search(r"\d+", name)',
        r're.compile(r"turbo(\d)")',
        'name.startswith("q5")',
        'name.startswith(("turbo", "x"))',
        'name.removesuffix("_rot")',
        'name.endswith("_0")',
        '"turbo" in name',
        "int(name[-1])",
    ],
)
def test_what_takes_names_apart_is_seen(line: str) -> None:
    assert len(list(readings(line))) == 1


@pytest.mark.parametrize(
    "line", ['text.endswith(".json")', '"turbo4" in pairs', 're.fullmatch(r"blk\\.(\\d+)", name)', '"f16" in ("f16",)']
)
def test_other_texts_may_be_read(line: str) -> None:
    assert list(readings(line)) == []
