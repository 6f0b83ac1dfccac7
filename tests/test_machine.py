from __future__ import annotations

import warnings

import psutil
import pytest
import torch

from stratakv.machine import cpu_model, machine


def test_the_machine_is_described_without_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stratakv.machine.native", lambda: None)
    described = machine()
    assert described["features"] == []
    assert described["compiler"] is None


def test_machine_names_what_results_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "4096")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the module is not built everywhere
        described = machine()
    assert described["cpu"] == cpu_model() != ""
    assert described["memory"] == psutil.virtual_memory().total
    assert described["threads"] == torch.get_num_threads()
    assert described["torch"] == torch.__version__
    assert described["malloc"]["MALLOC_TOP_PAD_"] == "4096"
    assert 1 <= described["cores"] <= described["logical_cores"]
