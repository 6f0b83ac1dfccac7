"""Needles: where they lie, what counts as an answer, who can't do it, and that a cache that forgets loses them."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from copier import WordTokenizer, loaded_copier
from faults import forgetful_logits

from stratakv.assets import judging_text
from stratakv.cli.main import main
from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.measure.corpus import Text, read_text
from stratakv.measure.forward import Pass, context_logits
from stratakv.measure.intervals import mean_interval
from stratakv.measure.needles import NEEDLES, Haystack, ask, plant
from stratakv.measure.retrieval import format_needles, needles, share_interval
from stratakv.profile import resolve

TEXT = read_text(judging_text())


@pytest.fixture(scope="module")
def copier() -> LoadedModel:
    return loaded_copier()


@pytest.fixture(scope="module")
def haystacks(copier: LoadedModel) -> list[Haystack]:
    return plant(TEXT, copier.tokenizer, 1024, 2)[0]


def test_needles_lie_at_their_depths_and_are_asked_for_at_the_end(loaded: LoadedModel) -> None:
    tokenizer = loaded.tokenizer
    found, warnings = plant(TEXT, tokenizer, 1024, 3)
    assert warnings == []
    texts = []
    for each in found:
        assert each.ids.shape == (1024,)
        assert [question.depth for question in each.questions] == [10, 20, 30, 40, 50, 60, 70, 80, 90]
        assert len({question.key for question in each.questions}) == NEEDLES
        text = tokenizer.decode(each.ids[1:])
        filler = len(re.sub(r"\s+The secret number of \w+ is \d+\.", "", text))
        for question in each.questions:
            sentence = rf"The secret number of {question.key} is\s+{question.number}\."
            first, second = (match.start() for match in re.finditer(sentence, text))
            before = len(re.sub(r"\s+The secret number of \w+ is \d+\.", "", text[:first]))
            assert before / filler == pytest.approx(question.depth / 100, abs=0.04)
            assert second > text.index("The secret number of", len(text) // 2)
            value = tuple(each.ids[question.at : question.at + len(question.value)].tolist())
            assert value == question.value
            assert tokenizer.decode(value).strip() == str(question.number)
            assert question.others[0] == question.value[question.differs]
            assert len(set(question.others)) == NEEDLES, "first digits tell them apart"
        asked = [question.key for question in sorted(each.questions, key=lambda question: question.at)]
        assert asked != [question.key for question in each.questions], "not in the order of the text"
        texts.append(text)
    assert len({text[:200] for text in texts}) == 3, "filler of their own"


def test_the_seed_decides(copier: LoadedModel) -> None:
    first, again, other = (plant(TEXT, copier.tokenizer, 1024, 1, seed=seed)[0][0] for seed in (3, 3, 4))
    assert torch.equal(first.ids, again.ids)
    assert first.questions == again.questions
    assert first.questions != other.questions


def test_the_copier_finds_all(copier: LoadedModel, haystacks: list[Haystack]) -> None:
    found = ask(copier, resolve("f16", copier.geometry), haystacks, batch=512)
    assert found.right.all()
    assert found.nll.shape == found.margin.shape == (18,)
    assert found.nll.max() < 0.1
    assert found.margin.min() > 5


def test_answers_are_what_greedy_text_says(
    copier: LoadedModel, haystacks: list[Haystack], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits made by hand: one value is the likeliest, one is beaten by another planted value, one by another word."""
    each = haystacks[0]
    first = min(question.at for question in each.questions) - 1
    made = torch.zeros(1023 - first, 4096)
    for index, question in enumerate(each.questions):
        made[question.at - 1 - first, question.value[0]] = 3.0
        if index == 1:
            made[question.at - 1 - first, question.others[4]] = 5.0
        if index == 2:
            made[question.at - 1 - first, 4000] = 4.0
    monkeypatch.setattr("stratakv.measure.needles.context_logits", lambda *_: Pass(made, 7))
    found = ask(copier, resolve("f16", copier.geometry), [each], batch=512)
    assert found.right.tolist() == [True, False, False, *[True] * 6]
    np.testing.assert_allclose(found.margin, [3, -2, 3, 3, 3, 3, 3, 3, 3], atol=1e-5)
    assert found.nll[0] == pytest.approx(np.log(np.exp(3) + 4095) - 3, rel=1e-5)
    assert found.allocated == 7


def test_broken_predictions_are_refused(
    copier: LoadedModel, haystacks: list[Haystack], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "stratakv.measure.needles.context_logits",
        lambda *words: Pass(context_logits(*words).logits * torch.nan, 0),
    )
    with pytest.raises(UserError, match="profile f16, context 0: predictions are not finite"):
        ask(copier, resolve("f16", copier.geometry), haystacks, batch=512)


@pytest.fixture(scope="module")
def data(copier: LoadedModel, haystacks: list[Haystack]) -> dict[str, Any]:
    profiles = [resolve(text, copier.geometry) for text in ("f16", "turbo2", "turbo4")]
    seen: list[tuple[int, int]] = []
    made = needles(
        copier, TEXT, haystacks, profiles, seed=0, progress=lambda *done: seen.append(done), warnings=["a warning"]
    )
    assert seen == [(done, 6) for done in range(1, 7)], "f16 once"
    return made


def test_rows(data: dict[str, Any]) -> None:
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert (data["schema"], data["able"], data["chunks"], len(data["needles"])) == ("stratakv/needles/1", True, 2, 18)
    assert data["words"] == "copier has 18 of 18 needles right with an f16 cache"
    f16, turbo2, turbo4 = data["rows"]
    assert [f16["name"], turbo2["name"], turbo4["name"]] == ["f16", "turbo2", "turbo4"]
    assert f16["nll_diff"] == f16["lost"] == f16["won"] == 0
    assert turbo2["nll_diff"] > turbo4["nll_diff"] > 0
    assert turbo2["nll_diff"] == pytest.approx(turbo2["nll"] - f16["nll"])
    more = np.subtract(turbo2["nll_per_needle"], f16["nll_per_needle"])
    assert turbo2["nll_diff_ci95"] == pytest.approx(list(mean_interval(more) or ()))
    assert f16["right_by_depth"] == [1.0] * 9
    assert f16["right_ci95"] == list(share_interval(18, 18))


def test_the_table(data: dict[str, Any]) -> None:
    lines = format_needles(data).splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0].startswith("copier on dracula-judge.txt: 2 contexts of 1,024 tokens, 9 needles each at 10 to 90 %")
    assert any(line.split()[:4] == ["turbo4", "4.125", "100%", "[82%,"] for line in lines)
    assert any(line.split() == ["profile", *(str(10 * depth) for depth in range(1, 10))] for line in lines)
    assert lines[-1] == "warning: a warning"


def test_a_cache_that_forgets_loses_them(
    copier: LoadedModel, haystacks: list[Haystack], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stratakv.measure.needles.context_logits", forgetful_logits)
    made = needles(copier, TEXT, haystacks, [resolve("f32", copier.geometry)], seed=0)
    assert made["able"], "f16 forgets nothing"
    row = made["rows"][1]
    assert row["right_by_depth"][:8] == [0] * 8
    assert row["lost"] >= 16
    assert row["nll_diff_ci95"][0] > 3


def test_shares_have_wilsons_interval() -> None:
    assert share_interval(18, 18) == pytest.approx((0.8241, 1.0), abs=1e-4)
    assert share_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert share_interval(30, 36) == pytest.approx((0.6811, 0.9213), abs=1e-4)


def test_a_text_with_filler_for_fewer_says_so() -> None:
    short = Text("a.txt", "one two three " * 700, "0" * 64)
    found, (warning,) = plant(short, WordTokenizer(), 1024, 4)
    assert len(found) == 2
    assert warning == "4 contexts were asked for, a.txt has filler for 2 of 1,024 tokens"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-c", "256", "turbo4"], "11 needles and their questions take"),
        (["-c", "9999", "turbo4"], "the model's context is 4096"),
        (["--chunks", "0", "turbo4"], "--chunks 0: at least 1 context"),
        (["--seed", "-1", "turbo4"], "--seed -1: at least 0"),
        (["-b", "0", "turbo4"], "-b 0"),
        (["turbo9"], "turbo9"),
        (["turbo4", "--json", "/nonexistent/r.json"], "/nonexistent"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["needles", "-m", "embedded", "-f", str(judging_text()), *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = (line for line in err.splitlines() if not line.startswith("stratakv needles: reading"))
    assert line.startswith("stratakv: error: ")
    assert message in line


def test_a_model_that_cannot_do_it_gets_words_and_no_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["needles", "-m", "embedded", "-f", str(judging_text()), "-c", "1024", "--chunks", "1", "turbo4"]
    assert main([*words, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert (data["able"], data["rows"]) == (False, [])
    assert "no numbers: strata-8m-q8_0 can't do this, it has 0 of 9 needles right with an f16 cache" in err
    assert "--seed 0" in data["command"]
