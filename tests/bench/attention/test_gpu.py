"""The GPU's benchmark without one: every part runs in Triton's interpreter, and predictions come from machine code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend

from stratakv import UserError
from stratakv.bench.attention.caches import Shape
from stratakv.bench.attention.gpu import GpuSettings, _power, bench_gpu, event_times, format_gpu, gpu
from stratakv.bench.peers.gpu_attention import Decode, Run
from stratakv.cli.bench.attention import settle
from stratakv.cli.main import parse

OURS = ("turbo4/q8_0", "triton")

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

prompts = (70, 70), (70, 9)
settings = GpuSettings((("turbo4", "q8_0"),), Shape(1, 64), (2,), (130,), (1, 2), prefill=prompts, seconds=0, rotate_bytes=2**14)
data = bench_gpu(settings, torch.device("cpu"), timer, peers=())
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
    assert data["schema"] == "stratakv/bench-attention-gpu/2" and data["left_out"] == []
    rows = [(row["name"], row["kernel"], row["batch"], row["q_heads"]) for row in data["rows"]]
    assert rows == [
        (name, kernel, 2, heads) for heads in (1, 2) for name, kernel in (OURS, ("torch SDPA bf16", "torch flash"))
    ]
    prompts = [(row["context"], row["queries"], row["q_heads"]) for row in data["prefill"]]
    assert prompts == [(70, 70, 1), (70, 70, 2), (70, 9, 1), (70, 9, 2)]
    assert [(row["name"], row["kernel"], row["tokens"]) for row in data["encode"]] == [(*OURS, 70)]
    assert all((row["name"], row["kernel"]) == OURS and row["sdpa_ms"] > 0 for row in data["prefill"])
    assert {row["sdpa_kernel"] for row in data["prefill"]} == {"torch flash"} and "SDPA bf16, torch flash" in found[
        "text"
    ]
    assert all(row["ms"] > 0 and row["gb_s"] > 0 for row in (*data["rows"], *data["encode"]))
    assert len(data["goals"]) == 5 and all(goal["met"] is None for goal in data["goals"])  # of other sizes
    assert found["text"].count("unknown  ") == 5
    assert "turbo4/q8_0" in found["text"] and "none: a CPU" in found["text"] and "9 queries over 70" in found["text"]


def settings(**given: Any) -> GpuSettings:
    shapes: dict[str, Any] = {"shape": Shape(1, 64), "batches": (1,), "contexts": (64, 128), "prefill": ((64, 64),)}
    return GpuSettings((("turbo4", "turbo4"),), **{**shapes, "seconds": 0, "rotate_bytes": 2**12, **given})


def test_parts_are_those_asked_for() -> None:
    for part, key in (("decode", "rows"), ("prefill", "prefill"), ("encode", "encode")):
        data = bench_gpu(settings(parts=(part,)), torch.device("cpu"), lambda run, seconds: [1.0], peers=())
        assert [key for key in ("rows", "prefill", "encode") if data[key]] == [key]


@pytest.mark.parametrize(
    ("kernels", "name"),
    [
        ((SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH), "torch math"),
        ((SDPBackend.CUDNN_ATTENTION,), "torch"),  # a CPU has none: torch's own choice
    ],
)
def test_the_fastest_of_torch_s_kernels_is_the_peer(
    kernels: tuple[SDPBackend, ...], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stratakv.bench.attention.gpu._SDPA_KERNELS", kernels)
    times = iter(range(9, 0, -1))
    data = bench_gpu(
        settings(parts=("decode",), contexts=(64,)),
        torch.device("cpu"),
        lambda run, seconds: [float(next(times))],
        peers=(),
    )
    assert data["rows"][1]["kernel"] == name and data["rows"][1]["ms"] == 1e3 * (next(times) + 1)


def test_runs_are_launched_ahead_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is asked for its time after each run waits for the host in the next one."""
    said: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            said.append("event")

        def elapsed_time(self, end: Event) -> float:
            return 2.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: said.append("wait"))
    turns: list[int] = []
    assert event_times(turns.append, 0) == [2e-3] * 10
    assert turns == [*range(5), *range(10)] and said == ["wait", *["event"] * 20, "wait"]


def test_the_power_state_is_the_measured_card_s(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def answer(command: list[str], **_: Any) -> SimpleNamespace:
        asked.append(command)
        return SimpleNamespace(stdout="P0, 1980 MHz\n")

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"card {device}"))
    monkeypatch.setattr("stratakv.bench.attention.gpu.subprocess.run", answer)
    assert _power(torch.device("cuda:1")) == "P0, 1980 MHz" and "--id=GPU-card cuda:1" in asked[0]


class Broken:
    """A peer whose kernel fails."""

    name, kernel = "theirs", "other"

    def missing(self) -> str | None:
        return None

    def nbytes(self, case: Decode) -> int:
        return 1

    def prepare(self, case: Decode) -> Run:
        raise TypeError("unexpected argument\nand so on")


def test_peers_that_are_missing_or_fail_are_said_and_the_rest_stays() -> None:
    given, device = settings(parts=("decode",), contexts=(64,)), torch.device("cpu")
    data = bench_gpu(given, device, lambda run, seconds: [1.0])
    assert [row["name"] for row in data["rows"]] == ["turbo4", "torch SDPA bf16"]
    assert data["left_out"][0] == "decode, FlashInfer bf16: FlashInfer isn't installed: pip install flashinfer-python"
    assert data["left_out"][1] == "decode, vLLM 4bit_nc: vLLM isn't installed" and len(data["left_out"]) == 3
    data = bench_gpu(given, device, lambda run, seconds: [1.0], peers=[Broken()])
    assert len(data["rows"]) == 2 and data["left_out"] == [
        "decode, theirs, 1 sequences of 64 tokens, 4 query heads a kv head: TypeError: unexpected argument"
    ]
    assert data["left_out"][0] in format_gpu(data)


def test_what_does_not_fit_in_memory_is_said_and_the_rest_stays() -> None:
    runs = 0

    def timer(run: Any, seconds: float) -> list[float]:
        nonlocal runs
        runs += 1
        if runs in (3, 6, 8):  # after copies: the second row, the prompt, and encoding
            raise torch.cuda.OutOfMemoryError
        return [1.0]

    data = bench_gpu(settings(), torch.device("cpu"), timer, peers=())
    assert [(row["name"], row["context"]) for row in data["rows"]] == [
        ("turbo4", 64),
        ("turbo4", 128),
        ("torch SDPA bf16", 128),
    ]
    assert data["left_out"] == [
        "decode, torch SDPA bf16, 1 sequences of 64 tokens, 4 query heads a kv head: not enough memory",
        "prefill, turbo4, 64 queries over 64 tokens, 4 query heads a kv head: not enough memory",
    ]
    assert len(data["encode"]) == 1 and data["left_out"][1] in format_gpu(data)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--device", "cuda", "--llama-python", "/a/python"], "--llama-python: .* with --device cuda,"),
        (["--device", "cuda", "--plot", "a.svg"], "--plot: .* with --device cuda,"),
        (["--batch", "4"], "--batch: .* with --device cpu,"),
        (["--predict", "--parts", "decode"], "--parts: .* with --predict,"),
        (["--predict", "--device", "cuda"], "--device: .* with --predict,"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_options_that_a_way_of_running_does_not_read_are_refused(given: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        settle(parse(["bench", "attention", *given]))


def test_a_gpu_s_options_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[GpuSettings] = []

    def bench(settings: GpuSettings, device: torch.device, *, command: str, report: Any) -> dict[str, Any]:
        taken.append(settings)
        raise UserError(command)

    monkeypatch.setattr("stratakv.bench.attention.gpu.gpu", torch.device)
    monkeypatch.setattr("stratakv.bench.attention.gpu.bench_gpu", bench)
    line = [
        "bench",
        "attention",
        "--device",
        "cuda:1",
        "--groups",
        "1,8",
        "--parts",
        "prefill",
        "--prefill",
        "1k+64,2k",
    ]
    args = parse(line)
    with pytest.raises(UserError, match=r"--device cuda:1") as error:
        args.func(args)
    assert (taken[0].groups, taken[0].parts, taken[0].prefill) == ((1, 8), ("prefill",), ((1088, 64), (2048, 2048)))
    assert all(word in str(error.value) for word in ("--groups 1,8", "--prefill 1k+64,2k", "--batch 1,8,64"))


def test_predictions_say_that_they_are_none_of_measurements(tmp_path: Path) -> None:
    out = tmp_path / "predicted.json"
    command = [
        "-m",
        "stratakv",
        "bench",
        "attention",
        "--predict",
        "--types",
        "turbo4,tcq5",
        "--head-dim",
        "80",
        "--json",
        str(out),
    ]
    text = run({"TRITON_CACHE_DIR": str(tmp_path)}, *command)
    assert "not measured on a GPU" in text and "left out: tcq5: " in text
    data = json.loads(out.read_text())
    assert [row["card"] for row in data["rows"]] == [
        "A100 SXM 80 GB",
        "RTX 4090",
        "H100 SXM",
    ]  # tcq5 has no such kernel
    for row in data["rows"]:
        assert row["bytes_per_head_row"] == 84 and 0 < row["share_of_bandwidth"] <= 1 and row["ms"] > 0


def test_a_machine_without_a_gpu_says_so() -> None:
    with pytest.raises(UserError, match="--device cuda:7: .* finds no such NVIDIA GPU"):
        gpu("cuda:7")
