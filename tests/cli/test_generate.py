"""`stratakv generate` and `stratakv chat` on the embedded model."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import sys

import pytest

from stratakv import load_model
from stratakv.cli.main import main
from stratakv.pages.layout import PAGE_TOKENS

CLOSING = re.compile(
    r"\[prompt (\d+) tokens, [\d,.]+ tokens/s; (\d+) new tokens, [\d,.]+ tokens/s; cache ([\d,]+) tokens, ([\d,]+) bytes\]\n"
)


@pytest.fixture(scope="module")
def loaded():
    return load_model("embedded")


@pytest.fixture(autouse=True)
def _loaded_once(loaded, monkeypatch):
    monkeypatch.setattr("stratakv.engine.load.load_model", lambda source, dtype, device: loaded)
    monkeypatch.delenv("TURBO_LAYER_ADAPTIVE", raising=False)


def generated(capsys, *options: str) -> tuple[str, str]:
    assert main(["generate", "-m", "embedded", "-p", "The night was", "-n", "6", "--temp", "0", *options]) == 0
    return capsys.readouterr()


def test_text_and_closing_line(capsys):
    out, err = generated(capsys, "--profile", "edges3")
    assert out.startswith("The night was ") and out.endswith("\n")
    spans = "recent: 1 page turbo8; first: 1 page turbo8"
    assert f"strata-8m-q8_0: profile edges3; {spans}, 5.219 bpv, 4,008 bytes a token\n" in err
    assert f"\nspans ({spans}) by default, " in err and "; --recent 0: none\n" in err
    closing = CLOSING.search(err)
    assert closing is not None
    prompt, new, held, size = (int(group.replace(",", "")) for group in closing.groups())
    assert (new, held) == (6, prompt + 5)  # the last token is never fed
    assert size == PAGE_TOKENS * (6 * 532 + 6 * 520)  # its one page is fine: q8_0/turbo8 and turbo8


def test_it_streams(monkeypatch):
    pieces: list[str] = []

    class Recorder(io.StringIO):
        def write(self, text: str) -> int:
            pieces.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stdout", Recorder())
    assert main(["generate", "-m", "embedded", "-p", "The night was", "-n", "12", "--temp", "0"]) == 0
    assert pieces[0] == "The night was" and len([piece for piece in pieces[1:] if piece.strip()]) > 3


def test_profile_options_and_warnings(capsys):
    _, err = generated(capsys, "-ctk", "turbo4", "-ctv", "turbo4", "--layer-adaptive", "7")
    assert "warning: mode 7 ignores -ctv turbo4 and lowers V to turbo2" in err
    assert "profile mode 7; recent: 1 page turbo8; first: 1 page turbo8, 4.188 bpv, 3,216 bytes a token" in err
    _, err = generated(capsys, "-v", "--profile", "first1: f16; rest: turbo4")
    assert "1-11   1-11      full  turbo4  turbo4" in err


def test_seed(capsys):
    options = ("--temp", "1.5", "--top-k", "0", "--min-p", "0", "--top-p", "1")
    texts = [generated(capsys, *options, "-s", seed)[0] for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_prompt_from_standard_input(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("The night was"))
    assert main(["generate", "-m", "embedded", "-p", "-", "-n", "6", "--temp", "0"]) == 0
    assert capsys.readouterr().out == generated(capsys)[0]


def test_a_closed_standard_input(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["generate", "-m", "embedded", "-p", "-"]) == 2
    assert "standard input is closed" in capsys.readouterr().err
    assert main(["chat", "-m", "embedded"]) == 0


def test_json_has_text_tokens_and_bytes(capsys, loaded, tmp_path):
    out, _ = generated(capsys, "--profile", "edges3", "--recent", "0", "--json", str(tmp_path / "g.json"))
    data = json.loads((tmp_path / "g.json").read_text())
    assert data["schema"] == "stratakv/generate/1" and data["prompt"] + data["text"] + "\n" == out
    assert len(data["tokens"]) == 6 and loaded.tokenizer.decode(data["tokens"]) == data["text"]
    assert data["cache_bytes"] == PAGE_TOKENS * 4008 and data["profile"]["layers"][0] == ["q8_0", "turbo4"]
    alone, err = generated(capsys, "--profile", "edges3", "--recent", "0", "--json", "-")
    assert json.loads(alone)["tokens"] == data["tokens"] and "The night was" in err
    assert main(["generate", "-m", "embedded", "-p", "x", "--json", str(tmp_path / "absent" / "g.json")]) == 2


def test_context_beyond_the_models(capsys, loaded, monkeypatch):
    short = dataclasses.replace(loaded, geometry=dataclasses.replace(loaded.geometry, context=8))
    monkeypatch.setattr("stratakv.engine.load.load_model", lambda source, dtype, device: short)
    _, err = generated(capsys)
    assert re.search(
        r"warning: \d+ tokens of prompt and 6 new ones exceed the model's context of 8: .*never trained", err
    )


@pytest.mark.parametrize("command", ["generate", "chat"])
@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--temp", "-1", "0 or more"),
        ("--temp", "nan", "0 or more"),
        ("--temp", "inf", "finite"),
        ("--top-k", "-1", "0 or more"),
        ("--top-p", "0", "above 0, at most 1"),
        ("--top-p", "1.5", "above 0, at most 1"),
        ("--min-p", "1", "0 or more, below 1"),
        ("--seed", str(2**63), "below 2^63"),
        ("-b", "0", "1 or more"),
        ("-n", "0", "at least 1"),
    ],
)
def test_bad_values(command, option, value, allowed, capsys):
    prompt = ["-p", "x"] if command == "generate" else []
    assert main([command, "-m", "embedded", *prompt, option, value]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith("stratakv: error: ")
    assert value.split(".")[0] in err and allowed in err


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_text_that_is_not_utf8(command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"D\xfcster\n"), encoding="utf-8"))
    prompt = ["-p", "-"] if command == "generate" else []
    assert main([command, "-m", "embedded", *prompt]) == 2
    assert "stratakv: error: the " in (err := capsys.readouterr().err) and "not UTF-8" in err


def test_chat_keeps_the_conversation_in_one_cache(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who goes there?\nAnd who are you?\n\nnever read\n"))
    assert main(["chat", "-m", "embedded", "-n", "5", "--temp", "0", "--system", "Be brief.", "-ctk", "turbo4"]) == 0
    out, err = capsys.readouterr()
    assert "a base model without a chat template" in err
    turns = CLOSING.findall(err)
    assert len(turns) == 2 and out.count("\n") >= 2
    first, second = ([int(number.replace(",", "")) for number in turn] for turn in turns)
    assert second[2] > first[2]
    assert second[0] < second[2] - second[1]  # only what the cache did not hold yet was computed


def test_spans_are_named_and_stored(capsys):
    spans = ["-ctk", "turbo4", "-ctv", "turbo4", "--recent", "2", "--first", "1"]
    out, err = generated(capsys, *spans, "--json", "-")
    data = json.loads(out)
    assert data["profile"]["spans"][0] == {"recent": 2, "recent_type": "turbo8", "first": 1, "first_type": "turbo8"}
    assert "profile turbo4; recent: 2 pages turbo8; first: 1 page turbo8, 4.125 bpv" in err
    assert data["cache_bytes"] == PAGE_TOKENS * 12 * 520  # one fine page
