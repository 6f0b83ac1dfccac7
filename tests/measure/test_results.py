from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.measure.corpus import Contexts
from stratakv.measure.intervals import change_interval, mean_interval
from stratakv.measure.metrics import METRICS
from stratakv.measure.results import check_writable, compare, perplexity, write_json
from stratakv.measure.run import measure
from stratakv.profile import resolve

TOP = {
    "schema", "stratakv", "metrics_version", "model", "text", "context", "chunk", "chunks", "compute_dtype", "command",
    "machine", "warnings", "reference", "baseline", "far", "rows",
}  # fmt: skip
ROW = {
    "name", "profile", "spans", "bytes_per_token", "bpv", "context_bytes", "allocated_bytes", "ppl", "ppl_se", "ppl_se_over",
    "nll_per_chunk", "seconds", "warnings", "ppl_diff", "ppl_diff_ci95", "kld_mean", "kld_mean_ci95",
    *(metric.field for metric in METRICS), "kld_diff", "kld_diff_ci95", "kld_per_chunk", "baseline",
    "pareto", "verdict", "verdict_kind", "far",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(loaded: LoadedModel, contexts: Contexts) -> dict[str, Any]:
    profiles = [resolve(text, loaded.geometry) for text in ("f16", "turbo2", "mode7")]
    return compare(
        loaded, contexts, profiles, resolve("turbo4", loaded.geometry), batch=64, command="stratakv compare ..."
    )


def test_schema(data: dict[str, Any]) -> None:
    assert set(data) == TOP
    assert all(set(row) == ROW for row in data["rows"])
    assert data["schema"] == "stratakv/compare/1"
    assert (data["context"], data["chunk"], data["chunks"], data["metrics_version"]) == (128, 64, 4, 1)
    assert data["compute_dtype"] == "float32"
    assert data["model"]["name"] == "strata-8m-q8_0"
    assert len(data["model"]["fingerprint"]) == len(data["text"]["sha256"]) == 64
    assert data["text"]["tokens_scored"] == 4 * 63
    assert data["command"] == "stratakv compare ..."
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_f16_run_again_diverges_by_exactly_zero(data: dict[str, Any]) -> None:
    row = data["rows"][0]
    assert row["name"] == "f16"
    assert row["kld_mean"] == row["kld_max"] == row["kld_share_above_1e-3"] == 0
    assert row["kld_mean_ci95"] == [0, 0]
    assert row["kld_per_chunk"] == [0] * 4
    assert row["ppl_diff"] == 0
    assert row["top1"] == 1
    assert row["baseline"]
    assert row["verdict_kind"] == "baseline"
    assert row["seconds"] > 0, "it ran, its numbers were not copied"


def test_the_reference_is_added_when_absent(data: dict[str, Any]) -> None:
    assert [row["name"] for row in data["rows"]] == ["f16", "turbo2", "mode 7", "turbo4"]
    assert data["reference"] == "turbo4"
    assert [row["verdict_kind"] for row in data["rows"]].count("reference") == 1
    assert data["rows"][3]["kld_diff"] == 0


def test_rows_hold_together(data: dict[str, Any], loaded: LoadedModel) -> None:
    reference = data["rows"][3]
    baseline = np.mean(data["rows"][0]["nll_per_chunk"])
    for row in data["rows"]:
        assert len(row["profile"]) == 12
        assert len(row["nll_per_chunk"]) == len(row["kld_per_chunk"]) == 4
        assert row["kld_mean"] == pytest.approx(np.mean(row["kld_per_chunk"]))
        assert row["ppl"] == pytest.approx(math.exp(np.mean(row["nll_per_chunk"])))
        assert row["ppl_diff"] == pytest.approx(row["ppl"] - math.exp(baseline), abs=1e-9)
        assert row["kld_diff"] == pytest.approx(row["kld_mean"] - reference["kld_mean"])
        change = change_interval(row["kld_per_chunk"], reference["kld_per_chunk"])
        assert row["kld_diff_ci95"] == pytest.approx([end * reference["kld_mean"] for end in change])
        assert row["kld_mean_ci95"] == pytest.approx(list(mean_interval(row["kld_per_chunk"])))
        assert 0 <= row["kld_median"] <= row["kld_p99"] <= row["kld_max"]
        assert row["allocated_bytes"] == row["context_bytes"] == 128 * row["bytes_per_token"]
    turbo2, mode7 = data["rows"][1:3]
    assert turbo2["verdict_kind"] == "worse"
    assert turbo2["kld_mean"] > mode7["kld_mean"] > reference["kld_mean"] > 0
    assert any("ignores -ctv" in warning for warning in mode7["warnings"])


def test_a_row_is_the_scores_summed_up(data: dict[str, Any], loaded: LoadedModel, contexts: Contexts) -> None:
    _, (scores,) = measure(loaded, contexts, [resolve("turbo2", loaded.geometry)], batch=64)
    row = data["rows"][1]
    assert scores.kld is not None
    assert scores.agree is not None
    assert scores.kld.shape == scores.nll.shape == scores.agree.shape == (4, 63)
    assert row["kld_mean"] == scores.kld.mean()
    assert row["kld_median"] == np.median(scores.kld)
    assert row["kld_p99"] == np.quantile(scores.kld, 0.99)
    assert row["kld_share_above_1e-3"] == (scores.kld > 1e-3).mean()
    assert row["top1"] == scores.agree.mean()


def test_few_contexts_have_no_intervals(loaded: LoadedModel, contexts: Contexts) -> None:
    few = Contexts(contexts.text, contexts.ids[:2, :32], contexts.tokens)
    profiles = [resolve(text, loaded.geometry) for text in ("turbo4", "turbo3")]
    seen: list[tuple[int, int]] = []
    made = compare(loaded, few, profiles, profiles[0], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]
    row = made["rows"][1]
    assert row["kld_diff_ci95"] is row["kld_mean_ci95"] is row["ppl_diff_ci95"] is None
    assert row["verdict"].startswith("undecided: fewer than 4 contexts give no interval")
    assert row["ppl_se_over"] == "tokens"
    assert made["chunk"] == 32, "no call had more tokens than a context"


def test_a_row_with_spans_is_judged_not_the_baseline(loaded: LoadedModel, contexts: Contexts) -> None:
    few = Contexts(contexts.text, contexts.ids[:2, :32], contexts.tokens)
    profiles = [resolve(text, loaded.geometry) for text in ("f16", "rest: f16; recent: 1 page f32")]
    rows = compare(loaded, few, profiles, resolve("turbo4", loaded.geometry))["rows"]
    assert [row["baseline"] for row in rows] == [True, False, False]
    assert rows[1]["verdict_kind"] == "undecided"


def test_perplexity_without_divergence_runs_one_profile(loaded: LoadedModel, contexts: Contexts) -> None:
    seen: list[int] = []
    profile = resolve("turbo4", loaded.geometry)
    made = perplexity(loaded, contexts, profile, progress=lambda done, total: seen.append(total))
    assert seen == [4] * 4
    (row,) = made["rows"]
    assert "kld_mean" not in row
    assert row["ppl_se_over"] == "contexts"
    spread = np.std(row["nll_per_chunk"], ddof=1) / 2
    assert row["ppl_se"] == pytest.approx(row["ppl"] * spread)
    with_divergence = perplexity(loaded, contexts, profile, divergence=True)["rows"][0]
    assert with_divergence["ppl"] == row["ppl"]
    assert set(with_divergence) == ROW - {"far", "kld_diff", "kld_diff_ci95", "verdict", "verdict_kind", "pareto"}


def test_a_model_with_broken_weights_is_refused(
    loaded: LoadedModel, contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = loaded.model.get_output_embeddings()
    monkeypatch.setattr(head, "forward", lambda x: torch.full((*x.shape[:-1], 4096), float("nan")))
    with pytest.raises(UserError, match="profile turbo4, context 0: negative log-likelihood is not finite"):
        perplexity(loaded, contexts, resolve("turbo4", loaded.geometry))


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json({"a": 1}, path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"a": float("nan")}, path)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(UserError, match="cannot write"):
        write_json({}, tmp_path / "missing" / "a.json")


def test_places_that_cannot_be_written_are_found_before(tmp_path: Path) -> None:
    check_writable(tmp_path / "a.json")
    for path in (tmp_path, tmp_path / "missing" / "a.json"):
        with pytest.raises(UserError, match="cannot write"):
            check_writable(path)
    assert list(tmp_path.iterdir()) == []
    for path in ("/proc/a.json", tmp_path / ("a" * 250 + ".json")):  # root may write anywhere, says os.access
        with pytest.raises(UserError, match="cannot write"):
            check_writable(path)
