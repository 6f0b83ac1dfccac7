"""Dependencies point one way, as docs/architecture.md says; no files and no packages import each other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from import_graph import Graph, circles, grouped, module_files, module_graph, outside_imports

import stratakv

PACKAGE = Path(stratakv.__file__).parent
ARCHITECTURE = PACKAGE.parent / "docs" / "architecture.md"
FILES = module_files(PACKAGE)
GRAPH = module_graph(FILES)

# The kernels of one kind of device, a package each: they know what a kernel is, and the choice among all knows them
DEVICES = sorted(f"stratakv.kernels.{path.parent.name}" for path in (PACKAGE / "kernels").glob("*/__init__.py"))
# What a kernel is written in has its package's name, Triton for example: that package alone imports it, and only once kernels run
LANGUAGES = {name: name.rpartition(".")[2] for name in DEVICES if name != "stratakv.kernels.cpu"}
TORCH_ONLY = ("kvtypes", "profile", "pages", "kernels")

FIRST = """
import importlib, json, sys
import torch, transformers

failed = {}
for name in json.loads(sys.argv[1]):
    for loaded in [each for each in sys.modules if each.split(".")[0] == "stratakv" and each != "stratakv._native"]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except ImportError as error:
        if error.name.split(".")[0] == "stratakv":  # others lack what only their host brings along, vLLM for example
            failed[name] = str(error)
print(json.dumps(failed))
"""


def room(module: str) -> str | None:
    """stratakv.kernels.choice is in the room kernels; the package's own file and __main__ only point at others."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__main__" else None


def order() -> list[list[str]]:
    """The levels of docs/architecture.md, lowest first: rooms of one level know nothing of each other."""
    block = re.search(r"^## Order\n.*?^```\n(.*?)^```", ARCHITECTURE.read_text(encoding="utf-8"), re.S | re.M)
    assert block is not None, "docs/architecture.md has no list of levels under '## Order'"
    return [line.split() for line in block[1].splitlines()]


def wrong_arrows(rooms: Graph, levels: list[list[str]]) -> set[tuple[str, str]]:
    """(room, what it imports although that is no lower)."""
    height = {name: level for level, names in enumerate(levels) for name in names}
    return {(name, other) for name, others in rooms.items() for other in others if height[other] >= height[name]}


def test_every_room_has_its_place_in_the_order() -> None:
    listed = [name for names in order() for name in names]
    assert sorted(listed) == sorted({name for module in FILES if (name := room(module))})


def test_no_arrow_points_against_the_order() -> None:
    rooms = grouped(GRAPH, {module: name for module in FILES if (name := room(module))})
    assert wrong_arrows(rooms, order()) == set()


def test_no_files_import_each_other() -> None:
    graph = {module: others - {"stratakv"} for module, others in GRAPH.items() if module != "stratakv"}
    assert circles(graph) == []


def test_no_packages_import_each_other() -> None:
    """A package and what is inside it count as two: the inner one may know the outer one's files, or the other way round."""
    packages = {
        module: module if path.name == "__init__.py" else module.rpartition(".")[0] for module, path in FILES.items()
    }
    found = circles(grouped(GRAPH, {module: package for module, package in packages.items() if package != "stratakv"}))
    assert found == [("stratakv.kernels", *DEVICES)]


@pytest.mark.parametrize("name", TORCH_ONLY)
def test_lower_rooms_need_torch_and_numpy_only(name: str) -> None:
    files = {
        module: path for module, path in FILES.items() if room(module) == name and not module.startswith((*LANGUAGES,))
    }
    assert outside_imports(files) <= {"torch", "numpy"}


@pytest.mark.parametrize(("package", "language"), LANGUAGES.items(), ids=LANGUAGES.values())
def test_a_device_s_kernels_need_their_language_and_only_once_they_run(package: str, language: str) -> None:
    files = {module: path for module, path in FILES.items() if module.startswith(package)}
    assert outside_imports(files) <= {"torch", "numpy", language}
    script = (
        "import sys, torch\n"
        "from stratakv.kernels.choice import kernel_for, order_of\n"
        "from stratakv.kvtypes import kv_type\n"
        "from stratakv.pages.layout import PageLayout\n"
        "layout = PageLayout(kv_type('turbo4'), kv_type('turbo4'), 128, 128, 1, order=order_of(torch.device('cpu')))\n"
        f"print(kernel_for(layout, torch.device('cpu')).name, {language!r} in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "False"


def test_what_reads_imports_sees_every_kind(tmp_path: Path) -> None:
    sources = {
        "house/__init__.py": "",
        "house/low/__init__.py": "from .part import x",
        "house/low/part.py": "import torch\ndef f():\n    from house.high.top import y",
        "house/high/__init__.py": "import json",
        "house/high/top.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..low import part",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    files = module_files(tmp_path / "house")
    graph = module_graph(files)
    assert graph["house.low"] == {"house.low.part"}
    assert circles(graph) == [("house.high.top", "house.low.part")]
    rooms = grouped(graph, {module: name for module in files if (name := room(module))})
    assert circles(rooms) == [("high", "low")]
    assert wrong_arrows(rooms, [["low"], ["high"]]) == {("low", "high")}
    assert wrong_arrows(rooms, [["low", "high"]]) == {("low", "high"), ("high", "low")}
    assert outside_imports(files) == {"torch"}


def test_every_module_can_come_first() -> None:
    modules = [name for name in FILES if name not in ("stratakv", "stratakv.__main__")]
    assert len(modules) > 60
    command = [sys.executable, "-c", FIRST, json.dumps(modules)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {}


def test_the_plugin_needs_no_room_but_the_pages_and_what_is_below() -> None:
    files = {module: path for module, path in FILES.items() if room(module) == "vllm_plugin"}
    rooms = grouped(GRAPH, {module: name for module in FILES if (name := room(module))})
    assert rooms["vllm_plugin"] <= {"errors", "sizes", "kvtypes", "profile", "pages", "kernels"}
    assert outside_imports(files) == {"torch", "numpy", "vllm"}
