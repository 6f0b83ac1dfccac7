"""Names of floating-point types in options."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


def torch_dtype(name: str) -> torch.dtype:
    """torch's type of an option's name."""
    import torch

    found: torch.dtype = getattr(torch, DTYPES[name])
    return found
