"""Exact products for a while, and no longer."""

from __future__ import annotations

import pytest
import torch

from stratakv import load_model
from stratakv.weights import ggml
from stratakv.weights.exact import exact_products

pytestmark = pytest.mark.skipif(ggml.unavailable() is not None, reason=f"needs ggml: {ggml.unavailable()}")
IDS = torch.tensor([[5, 99, 1203, 7, 812, 4000, 33, 21]])


def test_exact_within_and_as_before_afterwards() -> None:
    model, exact = (load_model("embedded", exact=exact).model for exact in (False, True))
    with torch.inference_mode():
        before = model(IDS).logits
        expected = exact(IDS).logits
        with pytest.raises(RuntimeError, match="an error"), exact_products(model):
            # the head alone still rounds its input
            assert float((model(IDS).logits - expected).norm() / expected.norm()) < 0.005
            assert float((model.model(IDS)[0] - exact.model(IDS)[0]).abs().max()) < 1e-5
            raise RuntimeError("an error")
        with exact_products(model, head=True):
            assert float((model(IDS).logits - expected).abs().max()) < 1e-4
        assert torch.equal(model(IDS).logits, before) and not torch.equal(before, expected)
