"""What the trellis types are for: less damage than turbo types at the same bytes, on text that nothing was chosen on."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from stratakv.assets import judging_text
from stratakv.cli.main import main
from stratakv.kvtypes import kv_type
from stratakv.measure.intervals import change_interval


@pytest.mark.slow
def test_tcq4_takes_a_third_off_turbo4s_kld(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    given = ["-m", "embedded", "-f", str(judging_text()), "-c", "512", "--chunks", "32", "--json", str(path)]
    assert main(["compare", *given, "turbo4", "tcq4"]) == 0
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    turbo, trellis = rows["turbo4"], rows["tcq4"]
    assert trellis["bytes_per_token"] == turbo["bytes_per_token"]
    change = change_interval(trellis["kld_per_chunk"], turbo["kld_per_chunk"])
    assert trellis["kld_mean"] < 0.7 * turbo["kld_mean"]
    assert change is not None and change[1] < -0.2, change


@pytest.mark.slow
def test_a_prompt_is_encoded_in_plain_torch_within_seconds() -> None:
    """512 tokens of the embedded model: 12 layers, K and V, 2 kv heads."""
    x = torch.randn(12, 2, 512 * 2, 128)
    begin = time.process_time()
    for layer in x:
        for side in layer:
            kv_type("tcq4").encode(side)
    assert time.process_time() - begin < 5
