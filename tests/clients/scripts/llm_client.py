from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

folder = tempfile.mkdtemp()
os.environ["LLM_USER_PATH"] = folder
from click.testing import CliRunner  # noqa: E402
from features import HELLO, MODEL, V1, report  # noqa: E402
from shapes import Strict  # noqa: E402

entry = [{"model_id": "ours", "model_name": MODEL, "api_base": V1, "supports_schema": True, "supports_tools": True}]
Path(folder, "extra-openai-models.yaml").write_text(json.dumps(entry), encoding="utf-8")  # JSON is YAML
from llm.cli import cli  # noqa: E402

OPTIONS = ["-m", "ours", "--key", "any", "-o", "temperature", "0", "-o", "max_tokens", "120"]


def ask(*more: str) -> str:
    result = CliRunner().invoke(cli, ["prompt", HELLO, *OPTIONS, *more], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return str(result.output)


def chat() -> None:
    assert ask("--no-stream").strip()


def stream() -> None:
    assert ask() == ask("--no-stream")


def structured() -> None:
    Strict.model_validate_json(ask("--no-stream", "--schema", json.dumps(Strict.model_json_schema())))


report({"chat": chat, "stream": stream, "structured": structured})
