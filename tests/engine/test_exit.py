"""How a program ends that has loaded a model: silently, whoever holds the model then, and without leaks of our own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from stratakv.kernels.native import native

pytestmark = pytest.mark.skipif(native() is None, reason="installed without a C++ compiler")

LOAD = """
import gc, sys, threading
import torch
import stratakv

def used():
    loaded = stratakv.load_model("embedded")
    cache = stratakv.KVCache(loaded.model.config, "turbo4")
    with torch.inference_mode():
        loaded.model(input_ids=torch.tensor([[1, 2, 3]]), past_key_values=cache)
    return loaded, cache
"""
THREAD = """
ready = threading.Event()
def hold():
    held = used()
    ready.set()
    threading.Event().wait()
threading.Thread(target=hold, daemon=True).start()
ready.wait()
"""
DROPPED = "used()"
HELD = "held = used()"
FROZEN = "held = used(); gc.freeze()"
RAISED = """
def fail():
    held = used()
    raise SystemExit
fail()
"""


def ended(script: str, **variables: str) -> str:
    """What a program says on stderr until it has ended."""
    environment = {**os.environ, **variables}
    done = subprocess.run([sys.executable, "-c", LOAD + script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_thread_that_holds_a_model_at_the_end_is_no_fault() -> None:
    assert ended(THREAD) == ""


@pytest.mark.slow
@pytest.mark.parametrize("script", [HELD, FROZEN, RAISED])
def test_nothing_is_said_at_the_end(script: str) -> None:
    assert ended(script) == ""


@pytest.mark.slow
def test_reports_can_be_asked_for_and_there_is_none_where_the_model_went() -> None:
    assert "leaked" in ended(THREAD, STRATAKV_REPORT_LEAKS="1")
    assert ended(DROPPED, STRATAKV_REPORT_LEAKS="1") == ""
