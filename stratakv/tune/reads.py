"""What a backward pass says about each type's error in stored vectors, taken apart by the page of the query that read them.

A layer with spans reads one vector in two forms: queries near it see the fine form, later ones the sealed one. So K and V are
given to the queries of each page as a copy of their own, whose gradient is what these queries alone ask of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, DynamicCache

from stratakv.engine import attention
from stratakv.kernels.encode import encode
from stratakv.kvtypes import kv_type
from stratakv.measure.divergence import Floats
from stratakv.profile.spans import PAGE_TOKENS, Spans

_READS = "_stratakv_reads"


class Reads:
    """K or V of one layer, x [1, kv_heads, tokens, dim], and the products of its gradients with its errors in each type.

    by_page: whether the layer's attention tells the readers' pages apart (`taken_apart`), read: whether it has. noted: whether a
    gradient has come. Gradients are kept, one a draw and page, and errors are made one type at a time: there are more types.
    """

    def __init__(self, types: Sequence[str], x: torch.Tensor, by_page: bool) -> None:
        self.types, self.x, self.by_page = tuple(types), x.detach(), by_page
        self.read = False
        self._pages = -(-x.shape[2] // PAGE_TOKENS) if by_page else 1
        self._gradients: list[dict[int, torch.Tensor]] = [{}]

    def read_by(self, x: torch.Tensor, page: int) -> torch.Tensor:
        """x as the queries of a page see it."""
        self.read = True
        out: torch.Tensor = _Leg.apply(x, self, page)  # type: ignore[no-untyped-call]
        return out

    def add(self, gradient: torch.Tensor, page: int) -> None:
        """gradient: of what the queries of a page read, as x."""
        there = self._gradients[-1]
        there[page] = there[page] + gradient if page in there else gradient

    def next_draw(self) -> None:
        """What is added from here on is of another draw."""
        self._gradients.append({})

    @property
    def noted(self) -> bool:
        """Whether a gradient has come."""
        return any(self._gradients)

    def squares(self, spans: Sequence[Spans]) -> tuple[Floats, Floats, Floats]:
        """Squares of the products, summed over all vectors and draws, [spans, types] each: of what is sealed under the spans, or
        all that a type does that keeps its own form in them, and of what the others have in the spans' type there. And squared
        errors, summed over all vectors: [types]."""
        products = np.zeros((len(self._gradients), self._pages, len(self.types), *self.x.shape[1:3]))
        errors = np.zeros(len(self.types))
        x = self.x.float()
        for column, name in enumerate(self.types):
            error = kv_type(name).decode(encode(kv_type(name), x), x.shape[-1])[0] - x[0]
            errors[column] = float(error.double().square().sum())
            for of_draw, there in zip(products, self._gradients, strict=True):
                for page, gradient in there.items():
                    of_draw[page, column] = torch.linalg.vecdot(gradient[0].float(), error).cpu().numpy()
        parts = [self._of_draw(each, spans) for each in products]
        sealed, fine = (np.sum([part[which] for part in parts], axis=0) for which in (0, 1))
        return sealed, fine, errors

    def _of_draw(self, products: Floats, spans: Sequence[Spans]) -> tuple[Floats, Floats]:
        whole = np.square(products.sum(0)).sum((-1, -2))
        parts = [self._split(products, each, whole) if each else (whole, np.zeros_like(whole)) for each in spans]
        return np.stack([sealed for sealed, _ in parts]), np.stack([fine for _, fine in parts])

    def _split(self, products: Floats, spans: Spans, whole: Floats) -> tuple[Floats, Floats]:
        pages, column = len(products), self.types.index(spans.type)
        sealed, fine = np.zeros_like(whole), 0.0
        for page in range(pages):
            there = products[..., page * PAGE_TOKENS : (page + 1) * PAGE_TOKENS]
            far = (
                min(pages, page + spans.recent + 1) if page >= spans.first else pages
            )  # its first page that sees it sealed
            sealed += np.square(there[far:].sum(0)).sum((-1, -2))
            fine += float(np.square(there[:far, column].sum(0)).sum())
        kept = np.array([keeps_its_form(name, spans, self.x.shape[-1]) for name in self.types])
        return np.where(kept, whole, sealed), np.where(kept, 0.0, fine)


def keeps_its_form(name: str, spans: Spans, dim: int) -> bool:
    """Whether a type has as many bits as the spans' own, so that there is one form of all."""
    return kv_type(name).bits_per_value(dim) >= kv_type(spans.type).bits_per_value(dim)


class _Leg(torch.autograd.Function):
    """The same values; the gradient is noted as it comes by."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, reads: Reads, page: int) -> torch.Tensor:
        ctx.reads, ctx.page = reads, page
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        ctx.reads.add(gradient, ctx.page)
        return gradient, None, None


class Watched:
    """Makes caches for one forward call over a whole context whose K and V are watched while gradients are asked for.

    layers: the model's that store K and V, and whether their readers' pages are told apart. reads: of K and V, by layer, once
    they are there. What a cache is given comes back and isn't kept.
    """

    def __init__(self, config: Any, layers: Mapping[int, bool], types: Sequence[str]) -> None:
        self.config, self.layers, self.types = config, layers, types
        self.reads: dict[int, tuple[Reads, Reads]] = {}

    def cache(self) -> Any:
        """A new one."""
        cache: Any = DynamicCache(config=self.config)
        for index in self.layers:
            cache.layers[index].update = partial(self._update, index)
        return cache

    def next_draw(self) -> None:
        """Gradients from here on are of another draw."""
        for each in chain.from_iterable(self.reads.values()):
            each.next_draw()

    def _update(
        self, index: int, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, ...]:
        if not torch.is_grad_enabled():
            return key, value
        apart = self.layers[index]
        k, v = (Reads(self.types, x, apart) for x in (key, value))
        self.reads[index] = k, v
        if not apart:
            return k.read_by(key, 0), v.read_by(value, 0)
        marked = key.view_as(key), value.view_as(value)
        for x, reads in zip(marked, (k, v), strict=True):
            setattr(x, _READS, reads)
        return marked


@contextmanager
def taken_apart() -> Iterator[None]:
    """Within, attention gives each page's queries their own copies of watched K and V."""
    AttentionInterface.register(attention.NAME, _by_pages)
    try:
        yield
    finally:
        attention.register()


def _by_pages(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """transformers' attention call, as `attention.attend` has it."""

    reads: list[Reads] = [getattr(x, _READS) for x in (key, value) if hasattr(x, _READS)]
    if len(reads) < 2:
        return attention.attend(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    attention.check_known(module, kwargs)
    mask = attention_mask
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()[None, None]
    found = []
    for page, first in enumerate(range(0, query.shape[2], PAGE_TOKENS)):
        rows = slice(first, first + PAGE_TOKENS)
        k, v = (each.read_by(x, page) for each, x in zip(reads, (key, value), strict=True))
        part = query[:, :, rows], k, v, mask[..., rows, :]
        found.append(attention.attend(module, *part, dropout, scaling, **kwargs)[0])
    return torch.cat(found, dim=1), None
