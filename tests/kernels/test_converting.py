"""Pages that change their types: no wait for the device, and what can't be stored is said."""

from __future__ import annotations

import numpy as np
import torch
from no_waiting import no_waiting

from stratakv.kernels.choice import TORCH
from stratakv.kernels.converting import convert
from stratakv.kernels.status import new_codes
from stratakv.kvtypes import TOO_LARGE, kv_type, type_names
from stratakv.pages.layout import PAGE_TOKENS, PageLayout
from stratakv.pages.pool import Pool

PAGES = 11  # more than are converted at once


def pool(name: str) -> Pool:
    return Pool.fixed(PageLayout(kv_type(name), kv_type(name), 64, 64, 1), PAGES, torch.device("cpu"))


def test_nothing_waits_for_the_device() -> None:
    states = torch.randn(PAGES * PAGE_TOKENS, 1, 64)
    states[PAGE_TOKENS] = 1e6
    source = pool("f32")
    TORCH.append(source, states, states, np.arange(len(states)), new_codes())
    pairs = [(page, PAGES - 1 - page) for page in range(PAGES)]
    assert int(kv_type("f16").encode_with_status(states)[1]) == TOO_LARGE
    for name in type_names():
        target, status = pool(name), new_codes()
        with no_waiting():
            convert(source, target, TORCH, pairs, status)
            convert(target, pool("f32"), TORCH, pairs, new_codes())
        _, code = target.layout.k.encode_with_status(states)
        assert status.tolist() == [int(code)] * 2, name
        found = target.read(torch.tensor([PAGES - 1]))[0, 0, :, : target.layout.k_bytes]
        assert torch.equal(found, target.layout.k.encode(states[:PAGE_TOKENS, 0])), name
