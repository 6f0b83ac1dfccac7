"""The wheel that `make wheel` builds, installed where nothing of the checkout and no compiler is in reach."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from clean_environment import CleanEnvironment

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(shutil.which(program) is None for program in ("make", "cmake", "ninja", "c++")),
        reason="building without the network needs make, CMake, Ninja and a C++ compiler",
    ),
]

CACHE = """
import torch, stratakv
loaded = stratakv.load_model("embedded")
ids = loaded.tokenizer("The night was dark, and", return_tensors="pt").input_ids
cache = stratakv.KVCache(loaded.model.config, "first3,last3: k=q8_0 v=turbo4; rest: turbo4")
with torch.inference_mode():
    loaded.model.generate(ids, past_key_values=cache, max_new_tokens=4, do_sample=False)
from stratakv.kernels.native import native
print(cache.get_seq_length(), native().__file__)
"""

ROOMS = """
import sys
import torch
from stratakv.kvtypes import kv_type, type_names

x = torch.randn(5, 128)
for name in type_names():
    assert kv_type(name).decode(kv_type(name).encode(x), head_dim=128).shape == x.shape

from stratakv.profile import LayerGeometry, ModelGeometry, resolve

layers = tuple(LayerGeometry(i, i, "full", (128, 128), 2, 8) for i in range(8))
assert resolve("edges3", ModelGeometry("m", layers, 4096)).bytes_per_token > 0
"""

KERNELS = """
import os
import torch
from stratakv.kernels.choice import kernel_for
from stratakv.kernels.kernel import Options
from stratakv.kernels.native import native
from stratakv.kernels.status import new_codes
from stratakv.kernels.step import Step
from stratakv.kvtypes import kv_type
from stratakv.pages.layout import PageLayout
from stratakv.pages.pool import Pool

assert native() is not None
layout = PageLayout(kv_type("q8_0"), kv_type("turbo4"), 128, 128, 2)
tables, lengths = [[2, 0], [1]], [200, 90]
k, v = torch.randn(290, 2, 128), torch.randn(290, 2, 128)
query = torch.randn(1 + 20, 8, 128)
found = []
for kernel in ("", "torch"):
    os.environ["STRATAKV_KERNEL"] = kernel
    pool = Pool(layout, torch.zeros(3, layout.page_bytes, dtype=torch.uint8))
    chosen = kernel_for(layout, pool.device)
    assert not kernel or chosen.name == kernel
    chosen.append(pool, k, v, Step.causal(tables, lengths, lengths).slots, new_codes())
    step = Step.causal(tables, lengths, [1, 20])
    found.append((pool.memory, chosen.attend(query, pool, step, Options(128**-0.5)).out))
(pool, out), (torch_pool, expected) = found
assert torch.equal(pool, torch_pool)
assert (out - expected).norm() < 1e-2 * expected.norm()
print("ok")
"""


FALLBACK = """
from stratakv.kernels.native import native
from stratakv.kvtypes import kv_type

assert native() is None
print(kv_type("turbo4").nbytes(128))
"""


def make_wheel(where: Path, **variables: str) -> Path:
    """The wheel that `make wheel` builds with these environment variables."""
    programs = Path(sys.executable).parent
    command = ["make", "-o", "venv", "wheel", f"BIN={programs}", f"DIST={where}", "WHEEL_ARGS=--no-build-isolation"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = where.glob("stratakv-*.whl")
    return built


def contents(wheel: Path) -> set[str]:
    """The package's files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if name.startswith("stratakv/")}


def has_compiled_module(wheel: Path) -> bool:
    return any(name.startswith("stratakv/_native.") and name.endswith(".so") for name in contents(wheel))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wheel(tmp_path_factory.mktemp("dist"))


def test_a_wheel_holds_every_module_and_no_source_of_the_compiled_one(wheel: Path) -> None:
    names = contents(wheel)
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "stratakv").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert {"stratakv/py.typed", "stratakv/assets/strata-8m-q8_0.gguf", "stratakv/assets/dracula-tune.txt"} <= names
    assert not [name for name in names if Path(name).suffix in {".cpp", ".h", ".inc"}]
    assert has_compiled_module(wheel)


def test_without_a_compiler_a_wheel_runs_in_plain_torch_and_says_so(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "dist", CXX="/no/such/compiler")
    assert not has_compiled_module(wheel)
    clean = CleanEnvironment(tmp_path / "clean", ["torch", "numpy"])
    clean.install(wheel)
    ran = clean.run("python", "-c", FALLBACK, inside=tmp_path)
    assert ran.returncode == 0 and ran.stdout == "66\n", ran.stderr
    assert ran.stderr.count("plain torch") == 1


def test_a_wheel_alone_runs(wheel: Path, tmp_path: Path) -> None:
    clean = CleanEnvironment(tmp_path / "clean", PROJECT["dependencies"])
    clean.install(wheel)
    told = clean.run("stratakv", "--version", inside=tmp_path)
    assert told.stdout == f"stratakv {PROJECT['version']}\n"
    shown = clean.run("stratakv", "show", "-m", "embedded", "--profile", "edges3", inside=tmp_path)
    assert shown.returncode == 0 and "turbo4" in shown.stdout, shown.stderr
    words = ["-m", "embedded", "-p", "Once upon a time", "-n", "4", "--temp", "0", "--profile", "turbo4"]
    written = clean.run("stratakv", "generate", *words, inside=tmp_path)
    assert written.returncode == 0 and written.stdout.startswith("Once upon a time"), written.stderr
    ran = clean.run("python", "-c", CACHE, inside=tmp_path)
    assert ran.returncode == 0, ran.stderr
    tokens, module = ran.stdout.split()
    assert int(tokens) > 4 and Path(module).is_relative_to(clean.site)


def test_beside_an_engine_that_has_torch_and_numpy_only(wheel: Path, tmp_path: Path) -> None:
    """`pip install --no-deps stratakv` is enough for types, profiles, pages and kernels."""
    clean = CleanEnvironment(tmp_path / "clean", ["torch", "numpy"])
    clean.install(wheel)
    assert not any((clean.site / name).exists() for name in ("transformers", "scipy", "psutil"))
    ran = clean.run("python", "-c", ROOMS + KERNELS, inside=tmp_path)
    assert ran.returncode == 0 and ran.stdout == "ok\n", ran.stderr
