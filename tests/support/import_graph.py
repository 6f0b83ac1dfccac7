"""Who imports whom, read from source: at the top, in functions, and for types alone, since each is knowledge of the other."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

Graph = dict[str, set[str]]


def module_files(package: Path) -> dict[str, Path]:
    """Every module below a package by its dotted name; a package's own file has the package's name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def module_graph(files: Mapping[str, Path]) -> Graph:
    """For each module the modules of the same package that it imports."""
    graph: Graph = {}
    for module, path in files.items():
        names = imported_names(path, module)
        graph[module] = {found for name in names if (found := _nearest(name, files))} - {module}
    return graph


def outside_imports(files: Mapping[str, Path]) -> set[str]:
    """Packages that modules import and that are neither theirs nor Python's own."""
    names = {name.split(".")[0] for module, path in files.items() for name in imported_names(path, module)}
    return names - sys.stdlib_module_names - {module.split(".")[0] for module in files}


def imported_names(path: Path, module: str) -> Iterator[str]:
    """Dotted names as a file's import statements give them, `from a import b` as a.b, relative ones made whole."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def grouped(graph: Graph, groups: Mapping[str, str]) -> Graph:
    """The same arrows between groups of modules; groups: of each module that counts."""
    found: Graph = {group: set() for group in groups.values()}
    for module, others in graph.items():
        if module in groups:
            found[groups[module]] |= {groups[other] for other in others if other in groups} - {groups[module]}
    return found


def circles(graph: Graph) -> list[tuple[str, ...]]:
    """Groups of names that reach each other, each sorted. Kosaraju's algorithm."""
    order: list[str] = []
    seen: set[str] = set()
    for name in graph:
        _visit(name, graph, seen, order)
    back: Graph = {name: set() for name in graph}
    for name, others in graph.items():
        for other in others:
            back[other].add(name)
    found, seen = [], set()
    for name in reversed(order):
        reached: list[str] = []
        _visit(name, back, seen, reached)
        if len(reached) > 1:
            found.append(tuple(sorted(reached)))
    return sorted(found)


def _visit(name: str, graph: Graph, seen: set[str], order: list[str]) -> None:
    """Append what is reached from a name for the first time, each after what it leads to."""
    if name in seen:
        return
    seen.add(name)
    for other in sorted(graph[name]):
        _visit(other, graph, seen, order)
    order.append(name)


def _nearest(name: str, files: Mapping[str, Path]) -> str | None:
    """The module that a name is, or is in."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name or None
