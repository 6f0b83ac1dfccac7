"""Models in Hugging Face format, made once a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from stratakv.engine.load import LoadedModel, load_model


@pytest.fixture(scope="session")
def strata(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model."""
    from vllm_engines import converted

    return converted("embedded", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def own(strata: Path) -> LoadedModel:
    """The same weights in our own engine."""
    return load_model(strata)
