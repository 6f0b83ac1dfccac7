"""ggml's kernels, from the libraries that llama-cpp-python brings (the extra `gguf`), for the compiled module."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from stratakv.kernels.native import native

DISTRIBUTION = "llama-cpp-python"
TESTED = "0.3.36"
OLDEST = (0, 3, 10)
HINT = "pip install 'stratakv[gguf]' keeps them in the file's blocks (builds llama-cpp-python, some minutes)"
# Types that a GGUF file stores matrices in; F16, BF16 and F32 are mapped like the rest
MATRIX_TYPES = tuple(
    type_ for type_ in GGMLQuantizationType if type_.name not in ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64")
)


@functools.cache
def unavailable() -> str | None:
    """Why ggml's kernels can't be used here, in words; None when they can. Opens the libraries at the first call."""
    module: Any = native()
    if module is None:
        return "stratakv has no compiled module here (no C++ compiler when it was installed)"
    if os.environ.get("STRATAKV_GGML", "") == "0":
        return "STRATAKV_GGML=0"
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        return f"{DISTRIBUTION} is not installed"
    version = importlib.metadata.version(DISTRIBUTION)
    if _numbers(version) < OLDEST:
        return f"{DISTRIBUTION} {version} is too old, {'.'.join(map(str, OLDEST))} or later is needed"
    folder = Path(spec.submodule_search_locations[0]) / "lib"
    suffix = "dylib" if sys.platform == "darwin" else "so"
    base, cpu = folder / f"libggml-base.{suffix}", folder / f"libggml-cpu.{suffix}"
    if not (base.is_file() and cpu.is_file()):
        return f"{DISTRIBUTION} {version} has no {base.name} and {cpu.name} in {folder}"
    wrong: str = module.open_ggml(str(base), str(cpu))
    if not wrong:
        wrong = multiplies(GGMLQuantizationType.Q8_0) or ""
    return f"{DISTRIBUTION} {version} can't be used ({wrong}); {TESTED} is tested" if wrong else None


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


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
