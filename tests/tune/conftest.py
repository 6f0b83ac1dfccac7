from __future__ import annotations

import functools

import pytest

from stratakv.engine.load import LoadedModel, load_model

load_once = functools.cache(load_model)


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    return load_once("embedded", exact=True)  # as the commands that measure do
