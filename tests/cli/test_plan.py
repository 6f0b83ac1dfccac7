"""`stratakv plan`: what it prints and what it refuses."""

from __future__ import annotations

import json
import shlex

import pytest
from evidences import evidence

from stratakv import resolve
from stratakv.cli.main import main
from stratakv.engine.describe import describe_model
from stratakv.profile.spans import PAGE_TOKENS as PAGE
from stratakv.weights import ggml

needs_packed = pytest.mark.skipif(ggml.unavailable() is not None, reason=f"weights are unpacked: {ggml.unavailable()}")


@pytest.fixture(scope="module")
def description():
    return describe_model("embedded")


@pytest.fixture(autouse=True)
def embedded(description, monkeypatch):
    """Described once: reading the file's header takes longer than all the rest."""
    monkeypatch.setattr("stratakv.engine.describe.describe_model", lambda source: description)
    return description


@pytest.fixture
def file(embedded, tmp_path):
    path = tmp_path / "e.json"
    path.write_text(json.dumps(evidence(fingerprint=embedded.fingerprint)))
    return str(path)


def run(capsys, *words: str) -> str:
    assert main(["plan", "-m", "embedded", *words]) == 0
    return capsys.readouterr().out


@needs_packed
def test_without_evidence_quality_is_unknown_and_the_command_that_measures_is_named(capsys):
    out = run(capsys, "--memory", "34MiB", "--context", "4k")
    assert "34.00 MiB for the cache alone, beside the weights; weights 7.99 MiB in the file's blocks" in out
    assert "\n>  q8_0 " in out and "48.00 MiB too much" in out
    assert out.count("unknown") == 15
    assert "stratakv serve -m embedded --profile q8_0 -c 4096 -np 1" in out
    assert "stratakv compare -m embedded -f TEXT" in out


@needs_packed
def test_memory_with_the_weights_in_their_blocks(capsys):
    out = run(capsys, "--memory", "64MiB", "--with-weights", "-c", "4096")
    assert "56.01 MiB after the weights; weights 7.99 MiB in the file's blocks" in out


def test_memory_with_unpacked_weights(capsys, monkeypatch):
    monkeypatch.setattr("stratakv.weights.ggml.unavailable", lambda: "no ggml here")
    out = run(capsys, "--memory", "64MiB", "--with-weights", "-c", "4096", "--dtype", "bf16")
    assert "48.99 MiB after the weights; weights 15.01 MiB in bf16" in out


def test_with_evidence_the_command_holds_the_whole_profile(capsys, file, embedded):
    out = run(capsys, "--evidence", file, "--quality", "0.004", "-c", "4096")
    assert "unknown" not in out and "KLD, 1e-3 nats: 3.15 measured, on the tuning text" in out
    words = shlex.split(next(line for line in out.splitlines() if "stratakv serve" in line))
    assert resolve(words[words.index("--profile") + 1], embedded.geometry).bytes_per_token == 3168


def test_json(capsys, file):
    data = json.loads(run(capsys, "--evidence", file, "--memory", "13MiB", "--json"))
    assert data["schema"] == "stratakv/plan/1" and data["memory_means"] == "cache" and data["weights_bytes"] > 7 * 2**20
    assert data["rows"][data["recommended"]]["bytes_per_token"] == 3168
    assert data["measure_command"] is None


def test_the_command_serves_all_sequences_within_the_models_context(capsys, file):
    out = run(capsys, "--evidence", file, "--quality", "0.004", "--memory", "1GiB", "-np", "3")
    assert "-c 12288 -np 3" in out  # as long as the model was trained for, though more would fit
    out = run(capsys, "--evidence", file, "--quality", "0.004", "--memory", "6MiB", "-np", "3")
    assert "-c 1920 -np 3" in out  # 5 pages each


def test_beyond_the_models_context_is_a_warning(capsys):
    assert "context 8,192 is beyond the model's 4,096" in run(capsys, "--memory", "1GiB", "-c", "8k")


def test_one_alone_says_what_is_missing(capsys):
    assert "give --memory too" in run(capsys, "-c", "4k")
    assert "nothing fits at the model's own 4,096 tokens: give --context" in run(capsys, "--memory", "1MiB")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--memory", "2"], "KiB, MiB, GiB"),
        (["--memory", "0GiB"], "positive size"),
        (["--context", "12x"], "such as 128k"),
        (["-np", "0"], "at least 1 sequence"),
        (["--quality", "0.1"], "--quality needs --evidence"),
        (["--with-weights"], "give --memory too"),
        (["--memory", "1MiB", "--with-weights"], "the weights alone take"),
        (["--memory", "1MiB", "-c", "4k"], "nothing fits"),
        (["--evidence", "absent.json"], "No such file"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, words, said):
    assert main(["plan", "-m", "embedded", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and said in captured.err


def test_evidence_of_another_model_is_refused(capsys, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(evidence(fingerprint="f" * 64)))
    assert main(["plan", "-m", "embedded", "--evidence", str(path)]) == 2
    assert "fingerprint ffffffffffffffff" in capsys.readouterr().err
    assert main(["plan", "-m", "embedded", "--evidence", str(path), "--quality", "nan"]) == 2


def test_spans_are_counted_and_in_the_command(capsys):
    spans = "recent: 2 pages turbo8; first: 1 page turbo8"
    words = ["--memory", "14MiB", "--context", "4k", "--recent", "2", "--first", "1"]
    out = run(capsys, *words)
    assert f"the cache's size counts spans, bpv and bytes/token don't: {spans} (not in f16, q8_0, turbo8)" in out
    data = json.loads(run(capsys, *words, "--json"))
    row = next(row for row in data["rows"] if row["name"] == "turbo4")
    assert row["spans"][0] == {"recent": 2, "recent_type": "turbo8", "first": 1, "first_type": "turbo8"}
    plain = json.loads(run(capsys, "--context", "4k", "--json", "--recent", "0"))
    bare = next(row for row in plain["rows"] if row["name"] == "turbo4")
    # of 12 layers: all pages but the spans' 3 sealed or about to be; fine are these, the page at hand, and a piece's
    pages, piece = 4096 // PAGE, 512 // PAGE
    assert row["cache_bytes"] == PAGE * 12 * ((pages - 3) * 264 + (4 + piece) * 520)
    assert bare["cache_bytes"] == PAGE * 12 * pages * 264
    best = data["rows"][data["recommended"]]["name"]
    assert best != "turbo4" and row["fits"] is False  # turbo4 takes 12.4 MiB, 17.3 with spans
    assert f"--profile 'rest: {best}; {spans}'" in data["command"]
    assert spans in data["measure_command"]


@pytest.fixture
def spanned(embedded, tmp_path):
    """Evidence of a tuning with one recent page."""
    wish = {"recent": 1, "recent_type": "turbo8", "first": 0, "first_type": "turbo8"}
    path = tmp_path / "s.json"
    path.write_text(json.dumps({**evidence(fingerprint=embedded.fingerprint), "spans": wish}))
    return str(path)


@pytest.mark.parametrize("same", [[], ["--recent", "1"], ["--recent", "1:turbo8", "--first", "0"]])
def test_a_tunings_spans_are_those_of_its_front(capsys, spanned, same):
    out = run(capsys, "--memory", "15MiB", "--context", "4k", "--evidence", spanned, *same)
    assert "bpv and bytes/token don't: recent: 1 page turbo8" in out
    assert "measured, on the tuning text" in out and "unknown" not in out and "warning" not in out


@pytest.mark.parametrize(
    ("other", "asked"),
    [
        (["--recent", "0"], "no spans"),
        (["--recent", "2"], "recent: 2 pages turbo8"),
        (["--first", "1"], "recent: 1 page turbo8; first: 1 page turbo8"),
        (["--recent", "1:f16"], "recent: 1 page f16"),
    ],
)
def test_no_kld_is_known_with_other_spans_than_the_tunings(capsys, spanned, other, asked):
    words = ["--memory", "24MiB", "--context", "4k", "--evidence", spanned, *other]
    out = run(capsys, *words)
    assert "measured," not in out and "predicted" not in out and out.count("unknown") == 7
    warning = f"warning: the KLDs in {spanned} are of recent: 1 page turbo8, with {asked} they are unknown: leave"
    assert next(line for line in out.splitlines() if line.startswith("warning")).startswith(warning)
    assert "stratakv compare -m embedded -f TEXT" in out
    data = json.loads(run(capsys, *words, "--json"))
    assert {(row["kld"], row["kld_measured"]) for row in data["rows"]} == {(None, False)}
    assert main(["plan", "-m", "embedded", *words, "--quality", "0.004"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and f"--quality 0.004: the KLDs in {spanned}" in err
    assert "leave --recent and --first out, or run 'stratakv tune -m embedded --budget turbo4" in err


def test_no_kld_is_known_with_spans_that_the_tuning_had_not(capsys, file):
    out = run(capsys, "--memory", "24MiB", "--context", "4k", "--evidence", file, "--recent", "2")
    assert "are of no spans, with recent: 2 pages turbo8 they are unknown" in out and "measured," not in out


def test_spans_longer_than_the_context_asked_for(capsys):
    assert main(["plan", "-m", "embedded", "--context", str(3 * PAGE - 1), "--recent", "2", "--first", "1"]) == 2
    out, err = capsys.readouterr()
    assert (
        out == ""
        and f"spans of 3 pages ({3 * PAGE} tokens) are longer than the context of {3 * PAGE - 1} tokens" in err
    )
    assert main(["plan", "-m", "embedded", "--recent", "2:q2"]) == 2
