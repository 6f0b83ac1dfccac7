"""All request bodies that the OpenAPI document allows, and many that it doesn't: never a 5xx, and nothing is left running."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode
from servers import Running, running

from stratakv.serve.request import Limits

# Numbers of new tokens: one answer of the whole context a request would take the fuzzing's time for nothing
_LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "num_predict")
_FEW = 3


@pytest.fixture(scope="module")
def target() -> Iterator[Running]:
    with tempfile.TemporaryDirectory() as directory:
        limits = Limits(slots=4, context=128, cache_bytes=4 * 2**20)
        options = {"slot_save_path": Path(directory), "metrics": True, "n_predict": _FEW}
        with running(limits=limits, **options) as server:
            yield server


def fuzz(server: Running, examples: int) -> int:
    """Every operation of the document, with bodies that fit it and bodies that don't; the number of requests."""
    requests = 0
    for found in schemathesis.openapi.from_url(f"{server.url}/openapi.json").get_all_operations():
        operation = found.ok()
        for mode in GenerationMode:

            @settings(
                max_examples=examples,
                deadline=None,
                derandomize=True,
                database=None,
                phases=(Phase.explicit, Phase.generate),
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                nonlocal requests
                requests += 1
                shorten(case.body)
                answer = case.call(timeout=60)
                assert answer.status_code < 500, f"{case.as_curl_command()}\n{answer.text}"

            with suppress(Unsatisfiable):  # nothing that doesn't fit exists for an operation without input
                ask()
        server.wait_idle(30)
    assert server.engine.snapshot().pages_used == 0
    return requests


def shorten(body: Any) -> None:
    """Few new tokens where many are asked for."""
    for part in (body, body.get("options")) if isinstance(body, dict) else ():
        if isinstance(part, dict):
            for name in _LENGTHS:
                if isinstance(part.get(name), int) and part[name] > _FEW:
                    part[name] = _FEW


def test_no_5xx(target):
    assert fuzz(target, 6) > 100


@pytest.mark.slow
def test_no_5xx_long(target):
    assert fuzz(target, 300) > 5000
