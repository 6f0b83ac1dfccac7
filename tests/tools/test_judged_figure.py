"""tools/judged_figure.py: judgements as a picture."""

import json
from pathlib import Path

from tools.judged_figure import draw

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def test_it_draws_a_panel_for_each_model_and_text_and_the_same_bytes_again(tmp_path: Path) -> None:
    judgements = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("real-*-turbo4-*.judge.json"))
    ]
    assert len(judgements) == 4
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    draw(judgements, first)
    draw(judgements, again)
    assert first.read_bytes().startswith(b"\x89PNG")
    assert first.read_bytes() == again.read_bytes()
    draw([{**each, "rows": [row for row in each["rows"] if row["family"] != "mode"]} for each in judgements], again)
    assert first.read_bytes() != again.read_bytes(), "a family without rows is left out"
    draw(judgements[:1], again)
    assert first.read_bytes() != again.read_bytes()
