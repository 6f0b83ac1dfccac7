"""The GPU's benchmark without one: every part runs in Triton's interpreter, and predictions come from machine code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stratakv import UserError
from stratakv.bench.attention.gpu import gpu

INTERPRETED = """
import json, time, torch
from stratakv.bench.attention.caches import Shape
from stratakv.bench.attention.gpu import GpuSettings, bench_gpu, format_gpu

def timer(run, seconds):
    found = []
    for turn in range(2):
        began = time.perf_counter()
        run(turn)
        found.append(time.perf_counter() - began)
    return found

settings = GpuSettings((("turbo4", "q8_0"),), Shape(1, 64), (2,), (130,), 2, 70, 0, 2**14)
data = bench_gpu(settings, torch.device("cpu"), timer)
print(json.dumps({"data": data, "text": format_gpu(data)}))
"""


def run(environment: dict[str, str], *command: str) -> str:
    environment = {**{name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}, **environment}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=True, env=environment
    ).stdout


def test_every_part_runs() -> None:
    found = json.loads(run({"TRITON_INTERPRET": "1", "STRATAKV_KERNEL": "triton"}, "-c", INTERPRETED).splitlines()[-1])
    data = found["data"]
    assert data["schema"] == "stratakv/bench-attention-gpu/1" and data["left_out"] == []
    rows = [(row["name"], row["kernel"], row["batch"]) for row in data["rows"]]
    assert rows == [("turbo4/q8_0", "triton", 2), ("torch SDPA bf16", "torch", 2)]
    assert data["prefill"][0]["kernel"] == "triton"
    assert all(row["ms"] > 0 and row["gb_s"] > 0 for row in data["rows"])
    assert data["prefill"][0]["prefill_ms"] > 0 and data["prefill"][0]["encode_gb_s"] > 0
    assert "turbo4/q8_0" in found["text"] and "none: a CPU" in found["text"]


def test_predictions_say_that_they_are_none_of_measurements(tmp_path: Path) -> None:
    out = tmp_path / "predicted.json"
    command = ["-m", "stratakv", "bench", "attention", "--predict", "--types", "turbo4,tcq4", "--json", str(out)]
    text = run({"TRITON_CACHE_DIR": str(tmp_path)}, *command)
    assert "not measured on a GPU" in text and "left out: tcq4: " in text
    data = json.loads(out.read_text())
    assert [row["card"] for row in data["rows"]] == [
        "A100 SXM 80 GB",
        "RTX 4090",
        "H100 SXM",
    ]  # tcq4 has no such kernel
    for row in data["rows"]:
        assert row["bytes_per_head_row"] == 132 and 0 < row["share_of_bandwidth"] <= 1 and row["ms"] > 0


def test_a_machine_without_a_gpu_says_so() -> None:
    with pytest.raises(UserError, match="--device cuda:7: .* finds no such NVIDIA GPU"):
        gpu("cuda:7")
