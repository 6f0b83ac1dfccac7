"""Far predictions: how their contexts are built, who has none, and that they show what a window hides."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from copier import WordTokenizer, loaded_copier
from faults import ForgetfulReading

from stratakv.assets import judging_text
from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.measure.corpus import Text, cut, read_text
from stratakv.measure.far import WARM_UP, FarContexts, NoFar, copying, far_contexts
from stratakv.measure.intervals import change_interval, mean_interval
from stratakv.measure.metrics import METRICS
from stratakv.measure.results import compare
from stratakv.measure.run import measure
from stratakv.measure.table import format_comparison
from stratakv.profile import resolve

TEXT = read_text(judging_text())


@pytest.fixture(scope="module")
def copier() -> LoadedModel:
    return loaded_copier()


def built(copier: LoadedModel, count: int = 4, **options: Any) -> FarContexts:
    found = far_contexts(TEXT, copier.tokenizer, count, model_context=4096, **options)
    assert isinstance(found, FarContexts)
    return found


def test_a_context_ends_with_its_own_beginning(copier: LoadedModel) -> None:
    far = built(copier)
    plain = copier.tokenizer(TEXT.content, add_special_tokens=False).input_ids
    assert far.ids.shape == (4, 2048)
    assert (far.passage, far.distance, far.scored, far.warnings) == (512, 1535, 480, ())
    assert far.ids[:, 0].tolist() == [0] * 4, "one BOS"
    assert far.ids[:, 1:1536].flatten().tolist() == plain[: 4 * 1535], "the text in a row, no token twice"
    assert torch.equal(far.ids[:, 1536:], far.ids[:, 1:513])
    targets = far.ids[:, far.first + 1 :]
    assert torch.equal(targets, far.ids[:, 1 + WARM_UP : 513]), "the copy, without the tokens by which it is recognised"
    assert torch.equal(built(copier).ids, far.ids)
    first = far.first_reading
    assert torch.equal(first.ids[:, first.first + 1 :], targets[:1]), "the same tokens"
    assert first.context == 513


def test_without_bos_the_text_has_its_place(loaded: LoadedModel) -> None:
    far = far_contexts(TEXT, _NoBos(), 2, 1024)
    assert isinstance(far, FarContexts)
    assert far.distance == 768
    assert torch.equal(far.ids[:, 768:], far.ids[:, :256])


class _NoBos(WordTokenizer):
    bos_token_id = None  # type: ignore[assignment]

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> Any:
        return super().__call__(text, add_special_tokens=False)


@pytest.mark.parametrize(
    ("options", "context", "distance"),
    [
        ({}, 2048, 1535),
        ({"context": 512}, 2048, 1535),
        ({"context": 4096}, 4096, 3071),
        ({"context": 8192}, 4096, 3071),  # the model's
        ({"size": 1336}, 1336, 1001),
        ({"size": 512}, 512, 383),
    ],
)
def test_length(copier: LoadedModel, options: dict[str, int], context: int, distance: int) -> None:
    far = built(copier, 1, **options)
    assert (far.context, far.distance) == (context, distance)
    said = [f"far means {distance} tokens back here, not 1,000: a far context has {context} tokens"]
    assert list(far.warnings) == (said if distance < 1000 else [])


def test_a_small_model_has_what_fits_and_says_so() -> None:
    far = far_contexts(TEXT, WordTokenizer(), 1, model_context=1024)
    assert isinstance(far, FarContexts)
    assert far.distance == 767
    (warning,) = far.warnings
    assert warning.endswith("not 1,000: a far context has 1,024 tokens, the model's whole context")


def test_a_text_that_has_fewer_gives_those_and_says_so() -> None:
    far = far_contexts(Text("a.txt", "one two three " * 1200, "0" * 64), WordTokenizer(), 4)
    assert isinstance(far, FarContexts)
    assert len(far.ids) == 2
    assert far.warnings == ("4 far contexts were asked for, a.txt has 2 of 2,048 tokens",)


@pytest.mark.parametrize(
    ("count", "options", "words"),
    [
        (0, {}, "no far predictions: --far 0"),
        (4, {"model_context": 256}, "no far predictions: they need 512 tokens, the model's context has 256"),
        (4, {"size": 200_000}, "a far context of 200,000 tokens takes 149,999 of the text, dracula-judge.txt has"),
    ],
)
def test_none_says_why(count: int, options: dict[str, int], words: str) -> None:
    found = far_contexts(TEXT, WordTokenizer(), count, **options)
    assert isinstance(found, NoFar)
    assert words in found.words


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (-1, {}, "--far -1: at least 0 contexts"),
        (4, {"size": 511}, "--far-ctx-size 511: a far context needs at least 512 tokens"),
        (4, {"size": 4097, "model_context": 4096}, "--far-ctx-size 4097: the model's context is 4096"),
    ],
)
def test_what_cannot_be_is_refused(count: int, options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        far_contexts(TEXT, WordTokenizer(), count, **options)


def test_who_copies(copier: LoadedModel, loaded: LoadedModel) -> None:
    found = copying(copier, built(copier), 512)
    assert found.able
    assert found.copy < 0.2 * found.first
    far = far_contexts(TEXT, loaded.tokenizer, 1, 512)
    assert isinstance(far, FarContexts)
    assert not copying(loaded, far, 512).able


def test_a_model_that_does_not_copy_gets_words_and_no_pass(loaded: LoadedModel) -> None:
    contexts = cut(TEXT, loaded.tokenizer, 32, 1)
    seen: list[tuple[int, int]] = []
    data = compare(
        loaded,
        contexts,
        [],
        resolve("turbo4", loaded.geometry),
        far=far_contexts(TEXT, loaded.tokenizer, 4, 512),
        progress=lambda *done: seen.append(done),
    )
    assert seen == [(1, 2), (2, 2)]
    assert data["far"]["chunks"] == 0
    assert [row["far"] for row in data["rows"]] == [None]
    words = data["far"]["words"]
    assert words.startswith("no far predictions: strata-8m-q8_0 doesn't copy, an f16 cache takes 3.90 nats a token")
    assert words in " ".join(format_comparison(data).split())


@pytest.fixture(scope="module")
def data(copier: LoadedModel) -> dict[str, Any]:
    profiles = [resolve(text, copier.geometry) for text in ("f16", "turbo2")]
    seen: list[tuple[int, int]] = []
    contexts, far = cut(TEXT, copier.tokenizer, 128, 4), built(copier)
    made = compare(
        copier,
        contexts,
        profiles,
        resolve("turbo4", copier.geometry),
        far=far,
        progress=lambda *done: seen.append(done),
    )
    assert seen == [(done, 32) for done in range(1, 33)], "4 contexts more, each with f16 and three profiles"
    return made


def test_rows_have_the_same_numbers_of_far_predictions(data: dict[str, Any], copier: LoadedModel) -> None:
    assert data["far"] | {"words": "", "nll_first": 0, "nll_copy": 0} == {
        "chunks": 4, "context": 2048, "passage": 512, "distance": 1535, "warm_up": 32, "tokens_scored": 1920,
        "nll_first": 0, "nll_copy": 0, "words": "",
    }  # fmt: skip
    f16, turbo2, turbo4 = (row["far"] for row in data["rows"])
    assert f16["kld_mean"] == f16["kld_max"] == 0
    assert (f16["verdict_kind"], turbo4["verdict_kind"], turbo2["verdict_kind"]) == ("baseline", "reference", "worse")
    _, (scores,) = measure(copier, built(copier), [resolve("turbo2", copier.geometry)], batch=512)
    assert scores.kld is not None
    assert turbo2["kld_mean"] == scores.kld.mean()
    assert turbo2["kld_per_chunk"] == scores.kld.mean(axis=1).tolist()
    assert turbo2["kld_p99"] == np.quantile(scores.kld, 0.99)
    assert turbo2["kld_mean_ci95"] == pytest.approx(list(mean_interval(turbo2["kld_per_chunk"]) or ()))
    change = change_interval(turbo2["kld_per_chunk"], turbo4["kld_per_chunk"])
    assert change is not None
    assert turbo2["kld_diff_ci95"] == pytest.approx([end * turbo4["kld_mean"] for end in change])
    assert {metric.field for metric in METRICS} < set(turbo2)
    assert turbo2["context_bytes"] == 2048 * turbo2["bytes_per_token"], "of a far context"
    assert not {"name", "allocated_bytes", "far"} & set(turbo2), "what a row has once"


def test_the_table_has_both(data: dict[str, Any]) -> None:
    lines = format_comparison(data).splitlines()
    assert max(map(len, lines)) <= 120
    (head,) = (line for line in lines if "far KLD" in line)
    assert head.split("  ")[0] == "profile" and "far top-1" in head
    (verdict,) = (line for line in lines if line.startswith(("  turbo2  ", "* turbo2  ")))
    assert "; far: worse, KLD +" in verdict
    assert any(
        line.startswith("far: 4 contexts of 2,048 tokens, their first 512 repeated at the end") for line in lines
    )
    old = {name: value for name, value in data.items() if name != "far"}
    old["rows"] = [{name: value for name, value in row.items() if name != "far"} for row in data["rows"]]
    assert "far" not in format_comparison(old), "results from before have a table too"


def test_a_cache_that_forgets_shows_in_far_predictions_alone(
    copier: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = cut(TEXT, copier.tokenizer, 128, 4)
    monkeypatch.setattr("stratakv.measure.run.Reading", ForgetfulReading)
    data = compare(copier, contexts, [], resolve("f32", copier.geometry), far=built(copier))
    (row,) = data["rows"]
    assert row["kld_mean"] < 1e-4
    assert row["top1"] > 0.98
    assert row["far"]["kld_mean"] > 1
    assert row["far"]["top1"] < 0.3


def test_a_context_is_a_block(copier: LoadedModel) -> None:
    """One context alone gives the numbers that it has among others: nothing is carried over."""
    far = built(copier, 2)
    profile = [resolve("turbo2", copier.geometry)]
    _, (both,) = measure(copier, far, profile, batch=512)
    _, (second,) = measure(copier, replace(far, ids=far.ids[1:]), profile, batch=512)
    assert both.kld is not None and second.kld is not None
    assert both.kld[1].tolist() == second.kld[0].tolist()
