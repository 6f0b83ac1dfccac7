"""ggml's kernels for the compiled module, from prebuilt libraries: libggml-python's, or llama-cpp-python's."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from stratakv.kernels.native import native

# Types that a GGUF file stores matrices in; F16, BF16 and F32 are mapped like the rest
MATRIX_TYPES = tuple(
    type_ for type_ in GGMLQuantizationType if type_.name not in ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64")
)


@dataclass(frozen=True)
class Source:
    """A Python package that brings ggml's libraries.

    package, folder: where they lie. oldest: first version that can be used; tested: the one that the tests run with.
    needs: instruction sets of the CPU that its build takes for granted on x86-64.
    """

    distribution: str
    package: str
    folder: str
    oldest: tuple[int, ...]
    tested: str
    needs: tuple[str, ...] = ()


LIBGGML = Source("libggml-python", "libggml", "lib64", (0, 20, 2), "0.20.2", ("avx2", "fma", "f16c"))
LLAMA = Source("llama-cpp-python", "llama_cpp", "lib", (0, 3, 10), "0.3.36")
HINT = "pip install libggml-python, or 'stratakv[gguf]' where it has no wheel, keeps them in the file's blocks"


SOURCES = (LLAMA, LIBGGML)
"""Where to look, in this order. llama-cpp-python first: a process holds one libggml-base, and llama.cpp can't be loaded after an
older one. On ARM its kernels are the faster ones too; elsewhere these only serve the types that have no tiles of our own."""


@functools.cache
def unavailable() -> str | None:
    """Why ggml's kernels can't be used here, in words; None when they can. Opens the libraries at the first call."""
    return None if _opened()[0] else _opened()[1]


def running() -> str:
    """The package whose libraries run, with its version: "libggml-python 0.20.2". Only where `unavailable` is None."""
    source, version = _opened()
    assert source is not None
    return f"{source.distribution} {version}"


@functools.cache
def _opened() -> tuple[Source | None, str]:
    """What was opened and its version; or None and why nothing can be."""
    module: Any = native()
    if module is None:
        return None, "stratakv has no compiled module here (no C++ compiler when it was installed)"
    wanted = os.environ.get("STRATAKV_GGML", "")
    if wanted == "0":
        return None, "STRATAKV_GGML=0"
    named = {source.distribution: source for source in (LIBGGML, LLAMA)}
    if wanted not in ("", "1", *named):
        return None, f"STRATAKV_GGML={wanted}: allowed are 0 and {' and '.join(named)}"
    reasons = []
    for source in (named[wanted],) if wanted in named else SOURCES:
        found = _find(source, module.cpu_features())
        if isinstance(found, str):
            reasons.append(found)
            continue
        version = importlib.metadata.version(source.distribution)
        wrong: str = module.open_ggml(*map(str, found))
        if not wrong:
            wrong = multiplies(GGMLQuantizationType.Q8_0) or ""
        if not wrong:
            return source, version
        reasons.append(f"{source.distribution} {version} can't be used ({wrong}); {source.tested} is tested")
    return None, ", ".join(reasons)


def _find(source: Source, features: list[str]) -> tuple[Path, Path] | str:
    """libggml-base and libggml-cpu, or why they can't be opened: code for another CPU would end the process."""
    spec = importlib.util.find_spec(source.package)
    if spec is None or not spec.submodule_search_locations:
        return f"{source.distribution} is not installed"
    version = importlib.metadata.version(source.distribution)
    if tuple(int(part) for part in re.findall(r"\d+", version)[:3]) < source.oldest:
        return f"{source.distribution} {version} is too old, {'.'.join(map(str, source.oldest))} or later is needed"
    missing = [name for name in source.needs if name not in features]
    if missing and platform.machine().lower() in ("x86_64", "amd64"):
        return f"{source.distribution} needs a CPU with {', '.join(missing)}"
    folder = Path(spec.submodule_search_locations[0]) / source.folder
    suffix = "dylib" if sys.platform == "darwin" else "so"
    base, cpu = folder / f"libggml-base.{suffix}", folder / f"libggml-cpu.{suffix}"
    if not (base.is_file() and cpu.is_file()):
        return f"{source.distribution} {version} has no {base.name} and {cpu.name} in {folder}"
    return base, cpu


@functools.cache
def multiplies(type_: GGMLQuantizationType) -> str | None:
    """Why ggml can't multiply rows of this type here; None when it can: it multiplied a known row right."""
    if type_ not in MATRIX_TYPES:
        return f"{type_.name} is no type of matrices"
    module: Any = native()
    try:
        module.check_ggml_type(int(type_))
    except ValueError as error:
        return str(error)
    return None
