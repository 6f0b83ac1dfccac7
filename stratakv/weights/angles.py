"""cos and sin of rotary positions, computed a block at once and kept: asking at each step took 0.25 ms, half of a small step."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

import numpy as np
import torch

_BLOCK = 256  # positions
_KEPT = 64  # blocks: 8 MB at 64 rotated dimensions


class Angles:
    """Of a base model's rotary embedding, asked once for each block. One whose frequencies hang on the length of the text
    ("dynamic", "longrope") is asked at each step."""

    def __init__(self, rotary: Any) -> None:
        self._rotary = rotary
        self.by_type = "layer_type" in inspect.signature(rotary.forward).parameters
        self._block = lru_cache(_KEPT)(self._compute_block)

    def __call__(self, x: torch.Tensor, positions: torch.Tensor, kind: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, float32 [.., tokens, rotated dims], contiguous. x: float32, hidden states. positions: int64 [batch,
        tokens]. kind: the layers' type, where the embedding has one for each."""
        flat = positions.reshape(-1).numpy()
        if positions.dim() != 2 or not self._fixed(kind) or flat.min(initial=0) < 0:
            return self._ask(x, positions, kind)
        blocks, rows = np.divmod(flat, _BLOCK)
        if len(flat) == 1:
            cos, sin = self._block(int(blocks[0]), kind)
            return cos[None, rows[0] : rows[0] + 1], sin[None, rows[0] : rows[0] + 1]
        numbers, which = np.unique(blocks, return_inverse=True)
        found = [self._block(number, kind) for number in numbers.tolist()]
        at = torch.from_numpy(which.reshape(-1) * _BLOCK + rows)
        cos, sin = (torch.cat([pair[side] for pair in found])[None, at] for side in (0, 1))
        return cos, sin

    def _fixed(self, kind: str | None) -> bool:
        type_ = getattr(self._rotary, "rope_type", "dynamic")
        if isinstance(type_, dict):
            type_ = type_.get(kind, "dynamic")
        return "dynamic" not in type_ and type_ != "longrope"

    def _compute_block(self, block: int, kind: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        positions = torch.arange(block * _BLOCK, (block + 1) * _BLOCK)[None]
        cos, sin = self._ask(torch.empty(0), positions, kind)
        return cos[0], sin[0]

    def _ask(self, x: torch.Tensor, positions: torch.Tensor, kind: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self._rotary(x, positions, kind) if kind else self._rotary(x, positions)
        return cos.float().contiguous(), sin.float().contiguous()
