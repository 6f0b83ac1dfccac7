from __future__ import annotations

import pytest
import torch

from stratakv.assets import judging_text
from stratakv.engine.load import LoadedModel, load_model
from stratakv.measure.corpus import Contexts, cut, read_text


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    torch.manual_seed(0)
    return load_model("embedded", exact=True)  # as the commands that measure


@pytest.fixture(scope="session")
def contexts(loaded: LoadedModel) -> Contexts:
    """4 contexts of 128 tokens: one full page a layer."""
    return cut(read_text(judging_text()), loaded.tokenizer, 128, 4)
