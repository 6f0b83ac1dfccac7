"""The embedded model, loaded once, and tasks in the harness's own form."""

from __future__ import annotations

from pathlib import Path

import lm_eval_tasks
import pytest

from stratakv.engine.load import LoadedModel, load_model


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    return load_model("embedded")


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the five tasks, few documents each."""
    directory = tmp_path_factory.mktemp("tasks")
    lm_eval_tasks.write(directory, docs=6)
    return directory
