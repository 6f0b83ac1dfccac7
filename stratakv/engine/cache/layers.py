"""One class a kind of attention layer, each a transformers cache layer over packed pages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from transformers.cache_utils import CacheLayerMixin, DynamicIndexedLayer, DynamicLayer, DynamicSlidingWindowLayer

from stratakv.engine.cache.handle import handles
from stratakv.engine.cache.sealing import SealedPages, Seals
from stratakv.engine.cache.steps import Steps
from stratakv.engine.cache.tables import Tables
from stratakv.errors import UserError
from stratakv.kernels.choice import kernel_for, order_of
from stratakv.kernels.kernel import Kernel
from stratakv.kernels.placing import Placed, PlacingLayer, Sealed
from stratakv.kvtypes import KVType
from stratakv.pages.allocator import PageAllocator
from stratakv.pages.layout import PAGE_TOKENS, PageLayout
from stratakv.pages.pool import GrowingPool, Pool

PACKED: dict[str, type[PackedLayer]] = {}
"""The class of each kind of layer, by transformers' name of the kind."""
Class = TypeVar("Class", bound="type[PackedLayer]")


def packs(*kinds: str) -> Callable[[Class], Class]:
    """Have `PACKED` know a class. What the kinds' tokens see, `geometry` says."""

    def known(class_: Class) -> Class:
        PACKED.update(dict.fromkeys(kinds, class_))
        return class_

    return known


@packs("full_attention")
class PackedLayer(DynamicLayer, PlacingLayer):
    """A layer that keeps every token.

    name: how errors call the layer. k, v: the types that its new K and V are stored in. steps: what the layers of a cache share.
    seals: with spans, what pages become that leave them; k and v are the finer types then. All sequences of a batch are
    equally long (padding included), as everywhere in transformers.
    """

    written: Tables
    sealed: SealedPages | None
    kernel: Kernel
    status: torch.Tensor

    def __init__(
        self, name: str, k: KVType, v: KVType, *, steps: Steps | None = None, seals: Seals | None = None
    ) -> None:
        CacheLayerMixin.__init__(self)
        self.name, self.k_type, self.v_type, self.seals = name, k, v, seals
        self.length = 0
        self._steps = steps or Steps()
        self.number = self._steps.status.add(name, (k, v), None if seals is None else (seals.k, seals.v))

    @property
    def pool(self) -> Pool:
        """Of the pages that new tokens are written to."""
        return self.written.pool

    @property
    def pages(self) -> PageAllocator:
        """The same: who owns which."""
        return self.written.pages

    @property
    def tables(self) -> list[list[int]]:
        """The same: page numbers by sequence; of layers with spans the fine pages alone."""
        return self.written.numbers

    @property
    def nbytes(self) -> int:
        """Bytes of the pages in use."""
        if not self.is_initialized:
            return 0
        return self.written.nbytes + (0 if self.sealed is None else self.sealed.tables.nbytes)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the pool from the first states' shapes [batch, kv_heads, tokens, head_dim]."""
        self.dtype, self.device = key_states.dtype, key_states.device
        if key_states.shape[1] != value_states.shape[1]:
            raise UserError(
                f"{self.name}: {key_states.shape[1]} K heads but {value_states.shape[1]} V heads; pages hold equally many"
            )
        k_dim, v_dim = key_states.shape[-1], value_states.shape[-1]
        self.k_type.check(k_dim)
        self.v_type.check(v_dim)
        order = order_of(self.device)
        layout = PageLayout(self.k_type, self.v_type, k_dim, v_dim, key_states.shape[1], order=order)
        self.kernel = kernel_for(layout, self.device)
        self.written = Tables(GrowingPool(layout, self.device), key_states.shape[0])
        status = self._steps.status
        self.status = status.of(self.number, self.device)
        self.sealed = None
        if self.seals is not None:
            self.sealed = SealedPages(self.seals, self.written, status.of(self.number, self.device, "sealed"))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the states to the pages; handles on all visible tokens come back.

        key_states, value_states: [batch, kv_heads, tokens, head_dim], after RoPE; nothing keeps a reference to them. The last
        layer's update ends the step: UserError, and packed layers as they were before the step, where a layer's states were
        inf, nan or too large for its types. Recurrent states can't go back: a model that has some needs a new cache then.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        batch, heads, tokens, _ = key_states.shape
        if batch != len(self.written):
            raise ValueError(f"{self.name} holds {len(self.written)} sequences, {batch} were given")
        placed = self._place(tokens)
        k, v = (
            x.squeeze(2) if tokens == 1 else x.transpose(1, 2).reshape(-1, heads, x.shape[3])
            for x in (key_states, value_states)
        )
        self.kernel.append(self.pool, k, v, placed.step.slots, self.status)
        if self.sealed is not None:
            self.sealed.seal()
        self.stored(tokens)
        return handles(placed, self.dtype)

    def place(self, batch: int, tokens: int) -> Placed | None:
        """See PlacingLayer."""
        if not self.is_initialized or batch != len(self.written):
            return None
        placed = self._place(tokens)
        unseen = placed.sealed is None and self.sealed is not None and self.sealed.waiting
        return None if unseen else placed

    def stored(self, tokens: int) -> None:
        """See PlacingLayer."""
        if self.sealed is not None:
            self.sealed.written()
        self.length += tokens
        self._steps.stored(self, tokens)

    @property
    def _window(self) -> int | None:
        return None

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens (a negative number, as in transformers) and free their pages.

        With spans: pages that are recent again are fine again, and keep the values that they were sealed with. UserError where
        their type can't store those.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes a negative number of tokens to remove, {tokens_to_remove} was given")
        self._steps.end()
        if self._crop(max(0, self.length + tokens_to_remove)):
            self._steps.status.check()

    def undo(self, tokens: int) -> None:
        """The step that brought the last tokens doesn't count."""
        if self.sealed is not None:
            self.sealed.undo()
        self._crop(self.length - tokens)

    def reset(self) -> None:
        """Free all pages, and their memory."""
        self._steps.forget()
        self.length = 0
        if self.is_initialized:
            del self.written, self.sealed
        self.is_initialized = False

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Sequence i becomes what sequence beam_idx[i] was; pages are shared, not copied."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence `repeats` times, pages shared."""
        if self.is_initialized:
            self._take([index for index in range(len(self.written)) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these sequences (indices, or a boolean mask over the batch), pages shared."""
        chosen = indices.nonzero().flatten() if indices.dtype == torch.bool else indices
        if self.is_initialized:
            self._take([int(index) for index in chosen])

    def offload(self) -> None:
        """Pages stay where they are: moving packed bytes back and forth costs more than it saves."""

    def prefetch(self) -> None:
        """Nothing to bring back, see offload."""

    def seal_due(self) -> None:
        """A step is over: seal pages that leave the spans."""
        if self.sealed is not None:
            self.sealed.seal_due(self.length)

    def settle(self) -> None:
        """A step is over and counts: free pages that no later query can see."""
        if self.sealed is not None:
            self.sealed.free(self.length)

    def _place(self, tokens: int) -> Placed:
        """Room for so many tokens more of each sequence, in pages of its own."""
        self._steps.begin(self)
        tables, length = self.written, self.length + tokens
        tables.extend(self.length // PAGE_TOKENS, -(-length // PAGE_TOKENS))
        if self.sealed is not None:
            return self._place_mixed(self.sealed, length, tokens)
        dropped = tables.indices[0] * PAGE_TOKENS
        arrays = tables.arrays
        step, numbers = self._steps.even(arrays.numbers, length, tokens, window=self._window, dropped=dropped)
        if numbers is not arrays.numbers:
            tables.arrays = replace(arrays, numbers=numbers)
        return Placed(tables.pool, step, self.kernel, self.status)

    def _place_mixed(self, sealed: SealedPages, length: int, tokens: int) -> Placed:
        end = (length - 1) // PAGE_TOKENS - sealed.spans.recent  # no query sees this page sealed, or a later one
        sealed.make_room(end)
        here, old = self.written.arrays, sealed.tables.before(end)
        mixture = self._steps.mixture(sealed.spans, here, old, length, tokens, window=self._window)
        if mixture.fine is not here or mixture.sealed is not old:
            self.written.arrays = mixture.fine
            sealed.tables.alike(end, mixture.sealed)
        (_, fine, seen), *_ = mixture.causal()
        part = None
        if seen is not None:
            part = Sealed(sealed.tables.pool, seen, sealed.kernel, sealed.status, sealed.waiting)
        return Placed(self.written.pool, fine, self.kernel, self.status, part, mixture)

    def _crop(self, length: int) -> bool:
        """Whether pages were written, and the status has to be read."""
        self.length = length
        if not self.is_initialized:
            return False
        if self.sealed is not None:
            return self.sealed.crop(length, self._steps.status.of(self.number, self.device, "fine again"))
        self.written.drop(lambda index: index >= -(-length // PAGE_TOKENS))
        return False

    def _take(self, indices: list[int]) -> None:
        self.written.take(indices)
        if self.sealed is not None:
            self.sealed.tables.take(indices)


@packs("sliding_attention", "reference_sliding_attention", "chunked_attention")
class PackedSlidingLayer(PackedLayer, DynamicSlidingWindowLayer):
    """A sliding-window or chunked layer: pages wholly before the window are freed."""

    def __init__(
        self,
        name: str,
        k: KVType,
        v: KVType,
        sliding_window: int,
        *,
        steps: Steps | None = None,
        seals: Seals | None = None,
    ) -> None:
        PackedLayer.__init__(self, name, k, v, steps=steps, seals=seals)
        self.sliding_window, self.record_past = sliding_window, False

    # the stock mask arithmetic reads this name
    @property
    def cumulative_length(self) -> int:
        """Tokens seen."""
        return self.length

    @cumulative_length.setter
    def cumulative_length(self, tokens: int) -> None:
        self.length = tokens

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """As PackedLayer."""
        PackedLayer.lazy_initialization(self, key_states, value_states)

    def crop(self, tokens_to_remove: int) -> None:
        """As PackedLayer; past a full window only while past states are recorded, as in transformers."""
        if self.length >= self.sliding_window and not self.record_past:
            raise RuntimeError(
                f"{self.name}: tokens before the window are gone; call activate_past_recording() before crop()"
            )
        PackedLayer.crop(self, tokens_to_remove)
        self._free_before(self.length - self.sliding_window + 1)

    @property
    def _window(self) -> int | None:
        return self.sliding_window

    def settle(self) -> None:
        """As PackedLayer."""
        PackedLayer.settle(self)
        if not self.record_past:
            self._free_before(self.length - self.sliding_window + 1)

    def _free_before(self, position: int) -> None:
        if self.is_initialized and position >= PAGE_TOKENS:
            for tables in (self.written, *(() if self.sealed is None else (self.sealed.tables,))):
                tables.drop(lambda index: index < position // PAGE_TOKENS)


@packs("indexed_attention")
class PackedIndexedLayer(DynamicIndexedLayer, PackedLayer):  # type: ignore[misc]
    """A layer of sparse attention whose indexer keeps keys of its own: K and V packed, the indexer's keys as they are."""

    def __init__(
        self, name: str, k: KVType, v: KVType, *, steps: Steps | None = None, seals: Seals | None = None
    ) -> None:
        PackedLayer.__init__(self, name, k, v, steps=steps, seals=seals)
        self.indexer_keys = self.indexer_position_ids = None
        self.is_indexer_initialized = False

    @property
    def nbytes(self) -> int:
        """Bytes of the pages and of the indexer's keys."""
        indexer = self.indexer_keys.nbytes if self.indexer_keys is not None else 0
        return super().nbytes + indexer
