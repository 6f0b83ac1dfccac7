from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stratakv.bench.attention.caches import Shape
from stratakv.bench.attention.plot import plot_attention
from stratakv.bench.peers.torch_attention import DECODE_PEERS
from stratakv.cli.main import main
from stratakv.errors import UserError
from stratakv.kvtypes import kv_type

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
