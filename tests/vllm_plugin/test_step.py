"""vLLM's arrays of a batch as a kernel's step."""

from __future__ import annotations

import numpy as np
import pytest

from stratakv.kernels.step import Step
from stratakv.vllm_plugin.step import step_of

LENGTHS, QUERIES = [300, 5, 129], [40, 5, 1]
TABLES = [[7, 3, 9], [4], [1, 2]]


def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Block tables of one width, whose rest is whatever an earlier batch left there; query starts; lengths."""
    tables = np.full((3, 8), 99, dtype=np.int32)
    for row, table in zip(tables, TABLES, strict=True):
        row[: len(table)] = table
    return tables, np.array([0, 40, 45, 46], dtype=np.int32), np.array(LENGTHS, dtype=np.int32)


@pytest.mark.parametrize("window", [None, 64])
def test_it_is_the_step_of_the_same_tables(window: int | None) -> None:
    expected = Step.causal(TABLES, LENGTHS, QUERIES, window=window)
    padded = np.concatenate([expected.slots, np.full(18, -1)])
    found = step_of(*arrays(), padded, window)
    for name in ("pages", "page_start", "query_start", "first", "last", "slots"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype and ours.flags["C_CONTIGUOUS"], name
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_a_request_without_query_tokens_has_none() -> None:
    tables, _, lengths = arrays()
    found = step_of(tables, np.array([0, 0, 5, 6]), lengths, np.arange(6))
    assert len(found) == 3 and found.last.tolist() == [1, 2, 3, 4, 5, 129]
