from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stratakv.cli.main import main
from stratakv.errors import UserError
from stratakv.kernels.attention import packed_attention
from stratakv.kvtypes import kv_type
from stratakv.measure.bench_caches import Shape, dense_pairs, packed_views, random_states
from stratakv.measure.bench_goals import goal_in_words, goals
from stratakv.measure.bench_llama import llama_python, write_attention_model
from stratakv.measure.bench_plot import plot_attention
from stratakv.measure.bench_torch_peers import DECODE_PEERS, prefill_peers

SHAPE = Shape(kv_heads=2, head_dim=64)
WORDS = [
    "bench",
    "attention",
    "--kv-heads",
    "2",
    "--head-dim",
    "64",
    "--rotate-mib",
    "1",
    "--seconds",
    "0.01",
    "-t",
    "1",
]
ROW_FIELDS = {
    *("name", "k", "v", "context", "q_heads", "kv_heads", "head_dim", "threads", "ms"),
    *("ns_per_head_row", "packed_gb_s", "share_of_read_bandwidth", "peer"),
}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("bench")
    words = ["-c", "128,256", "--groups", "4,1", "--types", "turbo4,q8_0/turbo4", "--prefill", "128,128+32"]
    assert main([*WORDS, *words, "--json", str(folder / "r.json"), "--plot", str(folder / "p.svg")]) == 0
    return json.loads((folder / "r.json").read_text()), folder / "p.svg"


def test_rows_have_their_fields_and_agree_with_each_other(result: tuple[dict[str, Any], Path]) -> None:
    data, plot = result
    assert data["schema"] == "stratakv/bench-attention/1"
    assert data["read_bandwidth_gb_s"] > 0
    assert data["command"].startswith("stratakv bench attention -c 128,256")
    assert {(row["context"], row["q_heads"]) for row in data["rows"]} == {(128, 8), (128, 2), (256, 8), (256, 2)}
    for row in data["rows"]:
        assert set(row) >= ROW_FIELDS
        # llama.cpp's time is a difference of steps
        tokens = row["context"] - (128 if row["peer"] == "llama.cpp" else 0)
        assert row["ns_per_head_row"] == pytest.approx(1e6 * row["ms"] / (tokens * row["q_heads"]))
        assert row["share_of_read_bandwidth"] == pytest.approx(row["packed_gb_s"] / row["read_gb_s"])
        nbytes = tokens * 2 * sum(kv_type(row[side]).nbytes(64) for side in "kv")
        assert row["packed_gb_s"] == pytest.approx(nbytes / row["ms"] / 1e6)
    ours = [row["name"] for row in data["rows"] if row["peer"] is None]
    assert set(ours) == {"turbo4", "q8_0/turbo4"}
    assert {row["name"] for row in data["rows"] if row["peer"] == "torch"} == set(DECODE_PEERS)
    assert {(row["context"], row["queries"]) for row in data["prefill"]} == {(128, 128), (160, 32)}
    assert all(row["ns_per_vector"] > 0 and row["us_per_token"] > 0 for row in data["encode"])
    assert plot.read_bytes().startswith(b"<?xml")


def test_picture_is_of_the_data_alone(result: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    data, plot = result
    plot_attention(data, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == plot.read_bytes()
    with pytest.raises(UserError, match="no decode step"):
        plot_attention({**data, "rows": []}, tmp_path / "none.svg")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-c", "1q"], "1q"),
        (["-c", ","], "at least one"),
        (["--types", "turbo9"], "turbo9"),
        (["--parts", "decode,sleep"], "sleep"),
        (["--rotate-mib", "0"], "at least 1"),
        (["--head-dim", "63"], "63"),
        (["--plot", "p.gif"], "gif"),
        (["--llama-python", "/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_end_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_caches_hold_what_dense_tensors_hold_and_rotate() -> None:
    views = packed_views(SHAPE, ("f32", "f32"), 200, 3 * SHAPE.packed_bytes(("f32", "f32"), 200))
    dense = dense_pairs(SHAPE, torch.float32, 200, 1)
    assert len(views) == 3
    assert len(dense) == 1
    for view in views:
        torch.testing.assert_close(view.dense("k"), dense[0][0], rtol=0, atol=0)
        torch.testing.assert_close(view.dense("v"), dense[0][1], rtol=0, atol=0)


def test_long_states_repeat_and_stay_within_their_count() -> None:
    states = random_states(Shape(1, 8), 5000)
    assert states.shape == (1, 1, 5000, 8)
    assert torch.equal(states[:, :, 4096:], states[:, :, : 5000 - 4096])


@pytest.mark.parametrize("name", DECODE_PEERS)
def test_every_peer_computes_the_same_attention(name: str) -> None:
    dtype, attention = DECODE_PEERS[name]
    ((k, v),) = dense_pairs(SHAPE, dtype, 256, 1)
    (view,) = packed_views(SHAPE, ("f32", "f32"), 256, 1)
    query = torch.randn(1, 8, 1, 64, generator=torch.Generator().manual_seed(3)).to(dtype)
    expected = packed_attention(query.float(), view, scale=64**-0.5)
    torch.testing.assert_close(attention(query, k, v).float(), expected, rtol=0.05, atol=0.02)  # bf16 keeps 8 bits


@pytest.mark.parametrize("queries", [256, 32])
def test_prefill_peers_compute_the_same_attention(queries: int) -> None:
    k, v = (random_states(SHAPE, 256, seed) for seed in (0, 1))
    (view,) = packed_views(SHAPE, ("f32", "f32"), 256, 1)
    query = torch.randn(1, 8, queries, 64, generator=torch.Generator().manual_seed(3))
    expected = packed_attention(query, view, scale=64**-0.5, causal=True)
    for attention in prefill_peers(k, v, 4, queries).values():
        torch.testing.assert_close(attention(query), expected, rtol=1e-2, atol=1e-2)


def _row(name: str, groups: int, ms: float, **more: Any) -> dict[str, Any]:
    row = {"name": name, "k": name, "v": name, "context": 32768, "q_heads": 8 * groups, "kv_heads": 8, "ms": ms}
    return {**row, "ns_per_head_row": 1e6 * ms / (32768 * 8 * groups), "peer": None, **more}


def test_goals_are_met_missed_or_unknown() -> None:
    rows = [
        _row("turbo4", 4, 1.2, share_of_read_bandwidth=0.6),
        _row("torch SDPA f32", 4, 2.0, k="f32", peer="torch", share_of_read_bandwidth=1.0),
        _row("torch GQA matmul bf16", 4, 15.0, k="bf16", peer="torch", share_of_read_bandwidth=1.0),
        _row("llama.cpp f16", 4, 6.0, peer="llama.cpp", share_of_read_bandwidth=1.0),
    ]
    words = [goal_in_words(goal) for goal in goals(rows, [], [])]
    found = goals(rows, [], [])
    assert [goal["met"] for goal in found[:5]] == [True, False, True, False, None]
    assert found[2]["measured"] == pytest.approx(12.5)  # f32 doesn't count as dense bf16
    assert found[1]["off_by"] == pytest.approx(0.2)
    assert words[0].startswith("met ")
    assert "by 20%" in words[1]
    assert words[4].startswith("unknown")
    rows.append(_row("llama.cpp f16 -fa off", 4, 3.0, peer="llama.cpp"))  # the faster of the two is the peer
    assert goals(rows, [], [])[3]["measured"] == pytest.approx(2.5)


def test_prefill_goal_is_against_the_fastest_peer() -> None:
    prefill = [
        {"name": name, "context": 8192, "queries": 8192, "ms": ms, "peer": peer}
        for name, ms, peer in [("turbo4", 130.0, None), ("slow", 200.0, "torch"), ("fast", 100.0, "torch")]
    ]
    goal = next(goal for goal in goals([], prefill, []) if goal["goal"].startswith("prefill of 8k"))
    assert goal["measured"] == pytest.approx(1.3)
    assert goal["met"] is False


def test_model_for_llama_has_the_shape(tmp_path: Path) -> None:
    from gguf import GGUFReader

    write_attention_model(tmp_path / "m.gguf", q_heads=8, kv_heads=2, head_dim=64, context=512)
    reader = GGUFReader(tmp_path / "m.gguf")
    shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in reader.tensors}
    assert shapes["blk.1.attn_q.weight"] == (64, 8 * 64)
    assert shapes["blk.0.attn_k.weight"] == (64, 2 * 64)


def test_llama_interpreter_is_checked() -> None:
    with pytest.raises(UserError, match="/nowhere"):
        llama_python("/nowhere")
