"""What `update()` gives back to the model: a tensor that only points at packed pages.

Our attention function recognises it and reads the pages; any other operation of a model decodes it to a dense tensor. So
unknown models are right, known ones are fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_map_only

from stratakv.cache.pages import Page, PageStore, addresses_of
from stratakv.kvtypes import KVType

Side = Literal["k", "v"]


@dataclass(frozen=True)
class PackedView:
    """Tokens start .. start + tokens of equally long sequences in one layer's pages, as they were when the view was made.

    tables: the block table of each sequence; start is relative to the tables' first page. addresses: of the tables' pages,
    int64 [batch, pages], for kernels.
    """

    store: PageStore
    tables: tuple[tuple[Page, ...], ...]
    start: int
    tokens: int
    addresses: NDArray[np.int64]

    def type_of(self, side: Side) -> tuple[KVType, int]:
        """The side's type and head_dim."""
        layout = self.store.layout
        return (layout.k, layout.k_dim) if side == "k" else (layout.v, layout.v_dim)

    def packed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Canonical bytes of K and of V, uint8 [batch, kv_heads, tokens, nbytes]."""
        rows = self.store.read([list(table) for table in self.tables], self.start, self.tokens)
        k_bytes = self.store.layout.k_bytes
        return rows[..., :k_bytes], rows[..., k_bytes:]

    def dense(self, side: Side) -> torch.Tensor:
        """Decoded vectors, float32 [batch, kv_heads, tokens, head_dim]."""
        type_, dim = self.type_of(side)
        packed = self.packed()[0 if side == "k" else 1]
        return type_.decode(packed, dim)


def view_of(store: PageStore, tables: Sequence[Sequence[Page]], start: int, tokens: int) -> PackedView:
    """A view of tokens start .. start + tokens of the tables."""
    return PackedView(store, tuple(map(tuple, tables)), start, tokens, addresses_of(tables))


class PackedStates(torch.Tensor):
    """A handle with the logical shape [batch, kv_heads, tokens, head_dim]: `view` and `side` say what it points at."""

    view_of: PackedView
    side: Side

    @staticmethod
    def __new__(cls, view: PackedView, side: Side, dtype: torch.dtype) -> PackedStates:
        layout = view.store.layout
        shape = (len(view.tables), layout.kv_heads, view.tokens, layout.k_dim if side == "k" else layout.v_dim)
        handle: PackedStates = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=view.store.device)
        handle.view_of = view
        handle.side = side
        return handle

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        type_, _ = self.view_of.type_of(self.side)
        return f"PackedStates({self.side}: {type_.name}, shape={tuple(self.shape)}, dtype={self.dtype})"

    def decoded(self) -> torch.Tensor:
        """A dense contiguous tensor of the handle's shape and dtype."""
        return self.view_of.dense(self.side).to(self.dtype).contiguous()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[Any, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map_only(PackedStates, PackedStates.decoded, (args, kwargs or {}))
        return func(*args, **kwargs)
