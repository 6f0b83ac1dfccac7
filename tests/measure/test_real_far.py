"""On a model of other people: a cache that forgets shows in far predictions and needles, and much less in ordinary ones."""

from __future__ import annotations

import pytest
from faults import ForgetfulReading, forgetful_logits
from real_models import SMOLLM2, needs_models

from stratakv.assets import judging_text
from stratakv.engine.load import LoadedModel, load_model
from stratakv.measure.corpus import cut, read_text
from stratakv.measure.far import far_contexts
from stratakv.measure.needles import plant
from stratakv.measure.results import compare
from stratakv.measure.retrieval import needles
from stratakv.profile import resolve

pytestmark = [pytest.mark.real, needs_models, pytest.mark.slow]
TEXT = read_text(judging_text())


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    return load_model(SMOLLM2, exact=True)


def test_far_predictions(smollm2: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What turbo2 does to ordinary predictions of 512 tokens is more than forgetting does, far ones tell them apart."""
    contexts = cut(TEXT, smollm2.tokenizer, 512, 2)
    far = far_contexts(TEXT, smollm2.tokenizer, 1, 1336)
    turbo2 = resolve("turbo2", smollm2.geometry)
    (honest,) = compare(smollm2, contexts, [], turbo2, far=far)["rows"]
    monkeypatch.setattr("stratakv.measure.run.Reading", ForgetfulReading)
    (forgets,) = compare(smollm2, contexts, [], resolve("f32", smollm2.geometry), far=far)["rows"]
    assert forgets["kld_mean"] < honest["kld_mean"]
    assert forgets["far"]["kld_mean"] > 10 * forgets["kld_mean"]
    assert forgets["far"]["top1"] < 0.6


def test_needles(smollm2: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    haystacks, _ = plant(TEXT, smollm2.tokenizer, 1024, 2)
    profiles = [resolve(text, smollm2.geometry) for text in ("q8_0", "turbo2")]
    data = needles(smollm2, TEXT, haystacks, profiles, seed=0)
    assert data["able"], data["words"]
    f16, q8_0, turbo2 = data["rows"]
    assert abs(q8_0["nll_diff"]) < 0.1
    assert turbo2["right"] < f16["right"]
    monkeypatch.setattr("stratakv.measure.needles.context_logits", forgetful_logits)
    _, forgets = needles(smollm2, TEXT, haystacks, [resolve("f32", smollm2.geometry)], seed=0)["rows"]
    assert sum(forgets["right_by_depth"][:8]) <= 1
    assert forgets["nll_diff_ci95"][0] > 1
