"""Python clients against the server on SmolLM2: each cell of the table in docs/serving.md is a test.

The clients live in an environment of their own (`make clients`): their pins are not ours.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from real_models import SMOLLM2, needs_models
from servers import Running, running

from stratakv import load_model
from stratakv.engine.load import LoadedModel
from stratakv.serve.request import Limits

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
SCRIPTS = Path(__file__).parent / "scripts"
FEATURES = ("chat", "stream", "tool", "structured", "scoring")
CLIENTS = {
    "openai": ("openai_client", "chat stream tool structured"),
    "openai-responses": ("openai_responses_client", "chat stream tool structured"),
    "anthropic": ("anthropic_client", "chat stream tool structured"),
    "langchain-openai": ("langchain_openai_client", "chat stream tool structured"),
    "langchain-ollama": ("langchain_ollama_client", "chat stream tool structured"),
    "litellm": ("litellm_client", "chat stream tool structured"),
    "pydantic-ai": ("pydantic_ai_client", "chat stream tool structured"),
    "instructor": ("instructor_client", "stream tool structured"),
    "llama-index": ("llama_index_client", "chat stream tool structured"),
    "openai-agents": ("openai_agents_client", "chat stream tool structured"),
    "smolagents": ("smolagents_client", "chat stream tool structured"),
    "outlines": ("outlines_client", "chat stream structured"),
    "llm": ("llm_client", "chat stream structured"),
    "lm-eval": ("lm_eval_client", "chat scoring"),
}
CELLS = [(client, feature) for client, (_, features) in CLIENTS.items() for feature in features.split()]

needs_clients = pytest.mark.skipif(
    not PYTHON.is_file(), reason="the clients are not here: `make clients` installs them"
)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(SMOLLM2)


@pytest.fixture(scope="module")
def server(model: LoadedModel) -> Iterator[Running]:
    """SmolLM2 over a quantized cache."""
    limits = Limits(slots=4, context=1024, cache_bytes=2**28)
    with running(profile="q8_0/turbo4", limits=limits, model=model, alias="smollm2") as made:
        yield made


@pytest.fixture(scope="module")
def outcomes(server: Running, model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> object:
    """A client's outcome by feature: its script runs once."""
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    model.tokenizer.save_pretrained(tokenizer)
    (tokenizer / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HOME": str(tmp_path_factory.mktemp("hub"))}

    @cache
    def run(client: str) -> dict[str, str]:
        script = SCRIPTS / f"{CLIENTS[client][0]}.py"
        command = [str(PYTHON), str(script), server.url, "smollm2", str(tokenizer)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, env={**os.environ, **quiet}, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return dict(json.loads(done.stdout.splitlines()[-1]))

    return run


@pytest.mark.slow
@pytest.mark.real
@needs_models
@needs_clients
@pytest.mark.parametrize(("client", "feature"), CELLS, ids=[f"{client} {feature}" for client, feature in CELLS])
def test_a_client(outcomes, client, feature):
    assert outcomes(client)[feature] == "ok", outcomes(client)[feature]


def test_the_table_of_the_page_is_what_is_tested():
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \|(.+)\|$", text.partition("## Clients")[2].partition("\n## ")[0], re.MULTILINE)
    table = {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}
    assert table == {
        name: ["yes" if feature in features.split() else "" for feature in FEATURES]
        for name, (_, features) in CLIENTS.items()
    }


def test_every_script_has_its_features():
    """Without the environment: each script reports what the table says."""
    for name, (script, features) in CLIENTS.items():
        reported = re.search(
            r"^report\(\{(.*)\}\)$", (SCRIPTS / f"{script}.py").read_text(encoding="utf-8"), re.MULTILINE
        )
        assert reported and re.findall(r'"(\w+)":', reported[1]) == features.split(), name
