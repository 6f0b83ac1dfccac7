"""`bench vllm` on real engines, as short as it gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stratakv.cli.main import main

pytestmark = pytest.mark.vllm


def test_engines_take_turns(strata: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--eager", "--requests", "2", "--prompt", "64", "-n", "4", "-c", "512", "--far-answer", "4", "-t", "1"]
    words += ["--rounds", "1", "--sequences", "1", "--json", str(tmp_path / "r.json")]
    assert main(["bench", "vllm", "-m", str(strata), *words]) == 0
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["schema"] == "stratakv/bench-vllm/1" and not data["compiled"]
    rows = {row["cache"]: row for row in data["rows"]}
    assert {"stock", "turbo4"} <= rows.keys()
    # 12,288 bytes a token in bf16, 3,168 in turbo4; both keep a block for themselves
    assert rows["stock"]["blocks"] == 33 and rows["turbo4"]["blocks"] == 33 * 12288 // 3168
    assert rows["stock"]["long"] == 1 and rows["turbo4"]["long"] == rows["turbo4"]["long_asked"] == 3
    for row in rows.values():
        assert row["tokens_per_second"] > 0 and row["ttft_ms"] > 0 and row["contexts"][0]["tokens"] == 512
    assert "sequences of 4k tokens in the same memory: 3 " in capsys.readouterr().out
