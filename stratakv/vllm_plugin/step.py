"""A step of vLLM's as the kernels take it: vLLM's blocks are pages, its slots the kernels' own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratakv.kernels.step import Step, running
from stratakv.pages.layout import PAGE_TOKENS


def step_of(
    tables: NDArray[Any],
    query_start: NDArray[Any],
    lengths: NDArray[Any],
    slots: NDArray[Any],
    window: int | None = None,
    prefill: NDArray[np.bool_] | None = None,
) -> Step:
    """Sequences whose query tokens are their last ones, each seeing all tokens up to its own, or its window.

    tables: integers [sequences, blocks], by position; what lies beyond a sequence's tokens, or before its window, may be
    anything. query_start: [sequences + 1]. lengths: tokens of each sequence, the query tokens among them. slots: where these go;
    more than query_start[-1] of them are padding. window, prefill: as `Step` has them.
    """
    counts = np.diff(query_start).astype(np.int64)
    lengths = lengths.astype(np.int64)
    total = int(query_start[-1])
    position = np.repeat(lengths - counts - query_start[:-1], counts) + np.arange(total)
    first = np.zeros(total, dtype=np.int32)
    if window is not None:
        first = np.maximum(position - window + 1, 0).astype(np.int32)
    held = -(-lengths // PAGE_TOKENS)
    pages = tables[np.arange(tables.shape[1]) < held[:, None]]
    return Step(
        np.ascontiguousarray(pages, dtype=np.int64),
        running(held),
        np.ascontiguousarray(query_start, dtype=np.int32),
        first,
        (position + 1).astype(np.int32),
        np.ascontiguousarray(slots[:total], dtype=np.int64),
        prefill,
    )
