"""A packed cache that goes on from one batch of rows to the next: what they share is computed once."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from stratakv.engine.cache import KVCache
from stratakv.engine.load import LoadedModel
from stratakv.lm_eval.rows import Batch, common
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.profile import Profile

_PIECE = 512  # tokens of a row in one forward call, fewer of each where a batch has many
# And at least: kernels attend fewer as they attend in decoding, with rounded queries, and numbers would hang on what is shared
_LEAST = 9


class Reader:
    """Reads batches of rows; between them its cache holds one row, `tokens`."""

    def __init__(self, loaded: LoadedModel, profile: Profile) -> None:
        self._loaded, self._profile = loaded, profile
        self._model: Any = loaded.model
        self._keeps = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self._cache = self._new()
        self.tokens: tuple[int, ...] = ()
        self.computed = 0
        self.shares = loaded.reads_in_pieces and self._cache.is_croppable

    def read(self, batch: Batch) -> Iterator[tuple[int, torch.Tensor]]:
        """(position, logits [rows, n, vocabulary] of the predictions made from there on), piece by piece, without what is before
        the first one that some row wants. Behind a row's end they are of padding and mean nothing."""
        rows, count = batch.rows, len(batch.rows)
        longest = max(_LEAST, *(len(row.tokens) for row in rows))
        stem = rows[0].tokens[: max(0, min(batch.stem, longest - _LEAST))]
        if count > 1 and len(stem) < _LEAST:
            stem = ()
        held = common(self.tokens, stem)
        start = self._go_back(held if count == 1 or held == len(stem) else min(held, len(stem) - _LEAST))
        if count > 1 and start < len(stem):
            for _ in self._forward([stem], start, len(stem)):
                pass
            start = len(stem)
        if count > 1 and start:
            self._cache.batch_repeat_interleave(count)  # pages are shared, and copied where rows part
        padded = [(*row.tokens, *[row.tokens[-1]] * (longest - len(row.tokens))) for row in rows]
        yield from self._forward(padded, start, min(row.first for row in rows))
        if not self.shares:
            self._cache, self.tokens = self._new(), ()
            return
        if count > 1:
            self._cache.batch_select_indices(torch.tensor([0]))
        self.tokens = padded[0]

    def _forward(self, rows: Sequence[tuple[int, ...]], start: int, first: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Feed rows from `start` on; logits from `first` on."""
        at, end, ids = start, len(rows[0]), torch.tensor(rows, device=self._model.device)
        piece = max(_LEAST, _PIECE // len(rows)) if self._loaded.reads_in_pieces else end
        while at < end:
            to = end if end - at - piece < _LEAST else at + piece
            wanted = to - max(at, first)
            # 0 would mean all; the head of a large vocabulary costs more than a layer
            options = {"logits_to_keep": max(1, wanted)} if self._keeps else {}
            with torch.inference_mode():
                out = self._model(input_ids=ids[:, at:to], past_key_values=self._cache, use_cache=True, **options)
            self.computed += len(rows) * (to - at)
            if wanted > 0:
                yield to - wanted, out.logits[:, -wanted:]
            at = to

    def _go_back(self, length: int) -> int:
        """Have the cache hold the first `length` of its tokens, or fewer where it can't go back so far; how many it holds."""
        held = self._cache.get_seq_length()
        if 0 < length < held and self._exact(held, length):
            self._cache.crop(length - held)
        elif held > length or not length:
            self._cache, length = self._new(), 0
        self.tokens = self.tokens[:length]
        return length

    def _exact(self, held: int, length: int) -> bool:
        """Whether a cropped cache is as if later tokens had never been: windows have not slid, and no page has left its span."""
        layers = self._loaded.geometry.layers
        slid = any(layer.window and held >= layer.window for layer in layers)
        page, now = length // PAGE_TOKENS, held // PAGE_TOKENS
        left = any(max(each.first, page - each.recent) < now - each.recent for each in self._profile.spans if each)
        return self.shares and not slid and not left

    def _new(self) -> KVCache:
        return KVCache(self._model.config, self._profile)
