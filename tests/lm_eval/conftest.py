"""The embedded model, loaded once, and tasks in the harness's own form."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import lm_eval_tasks
import pytest

from stratakv.engine.load import LoadedModel, load_model


@pytest.fixture(autouse=True)
def _no_questions_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness asks pip and the system what is installed after each evaluation, which takes seconds."""
    if find_spec("lm_eval"):
        monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    return load_model("embedded")


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the five tasks, few documents each."""
    directory = tmp_path_factory.mktemp("tasks")
    lm_eval_tasks.write(directory, docs=6)
    return directory
