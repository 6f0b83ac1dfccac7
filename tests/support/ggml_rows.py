"""Rows that ggml itself packed, for tests of products."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from stratakv.kernels.native import native
from stratakv.weights import ggml

FLOATS = ("F32", "F16", "BF16")
TILED = [type_.name for type_ in GGMLQuantizationType if (module := native()) and module.tiled(int(type_))]
"""Types that the compiled module says it has tiles for."""
BY_ROW = ["IQ3_S", "TQ2_0"]
"""Types without tiles of our own: ggml multiplies them row by row."""


@cache
def _quantize() -> Any:
    assert ggml.unavailable() is None
    base, _ = next(
        found for source in ggml.SOURCES if not isinstance(found := ggml._find(source, native().cpu_features()), str)
    )
    function = ctypes.CDLL(str(base)).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return function


class PackedRows:
    """A random matrix [rows, columns] packed by ggml. values: what the packed rows say, float32."""

    def __init__(self, kind: str, rows: int, columns: int, *, experts: int = 1, seed: int = 0) -> None:
        module: Any = native()
        type_ = GGMLQuantizationType[kind]
        weights = np.random.default_rng(seed).standard_normal((experts * rows, columns)).astype(np.float32) / 16
        block, size = GGML_QUANT_SIZES[type_]
        self.data = np.zeros(weights.size // block * size, dtype=np.uint8)
        importance = np.ones(columns, dtype=np.float32)
        _quantize()(
            int(type_), weights.ctypes.data, self.data.ctypes.data, 0, len(weights), columns, importance.ctypes.data
        )
        self.rows, self.columns = rows, columns
        self.matrix = module.Matrix(int(type_), rows, columns, self.data.ctypes.data, [], [])
        whole = module.Matrix(int(type_), len(weights), columns, self.data.ctypes.data, [], [])
        self.values = torch.empty(len(weights), columns)
        whole.unpack(0, 0, len(weights), self.values.data_ptr(), 1)

    def __call__(self, x: torch.Tensor, threads: int = 1) -> torch.Tensor:
        """x [tokens, columns] times the rows: [tokens, rows]."""
        module: Any = native()
        x = x.contiguous()
        out = torch.empty(len(x), self.rows)
        module.MatrixGroup([self.matrix]).multiply(x.data_ptr(), len(x), out.data_ptr(), threads)
        return out


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Activations as products read them: blocks of 32 in 8 bits of their largest value."""
    blocks = x.view(*x.shape[:-1], -1, 32)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    return ((blocks / scale.clamp_min(1e-30)).round() * scale).view_as(x)
