"""Two of memory, context and quality give the third."""

from __future__ import annotations

import pytest
from evidences import evidence
from geometries import plain

from stratakv.errors import UserError
from stratakv.pages.footprint import allocated_bytes
from stratakv.plan import USUAL, Wish, front_candidates, plan, usual_candidates
from stratakv.profile import ModelGeometry
from stratakv.profile.spans import PAGE_TOKENS as PAGE

MODEL = plain(12)
FRONT = front_candidates(evidence()["front"], MODEL)


def chosen(data):
    return None if data["recommended"] is None else data["rows"][data["recommended"]]


def test_memory_and_context_without_evidence_give_the_most_bytes_that_fit():
    data = plan(usual_candidates(MODEL), Wish(memory=26 * 2**20, context=4096))
    assert chosen(data)["name"] == "q8_0"
    assert [row["name"] for row in data["rows"] if row["fits"] is False] == ["f16"]
    assert all(row["kld"] is None for row in data["rows"])
    assert [row["bytes_per_token"] for row in data["rows"]] == sorted(
        (r["bytes_per_token"] for r in data["rows"]), reverse=True
    )


def test_memory_and_context_with_a_front_give_the_lowest_kld_that_fits():
    row = chosen(plan(FRONT, Wish(memory=13 * 2**20, context=4096)))
    assert row["bytes_per_token"] == 3168 and row["kld"] == pytest.approx(3.15e-3) and row["kld_measured"]


def test_memory_and_quality_give_the_context():
    row = chosen(plan(FRONT, Wish(memory=2**30, quality=4e-3)))
    assert row["bytes_per_token"] == 3168  # turbo3's KLD is too high, turbo5 takes more than is needed
    assert (
        allocated_bytes(FRONT[2].profile, row["max_context"])
        <= 2**30
        < allocated_bytes(FRONT[2].profile, row["max_context"] + 1)
    )


def test_context_and_quality_give_the_memory():
    data = plan(FRONT, Wish(context=100_000, quality=4e-3))
    assert chosen(data)["cache_bytes"] == -(-100_000 // PAGE) * PAGE * 3168
    assert chosen(data)["fits"] is None


def test_several_sequences_share_the_memory():
    one, four = (
        plan(usual_candidates(MODEL), Wish(memory=2**26, context=1024, sequences=n))["rows"][0] for n in (1, 4)
    )
    assert four["cache_bytes"] == 4 * one["cache_bytes"]
    assert one["max_context"] >= 4 * four["max_context"] > 0


def test_one_alone_recommends_only_what_it_can():
    assert chosen(plan(usual_candidates(MODEL), Wish(context=4096))) is None
    assert chosen(plan(usual_candidates(MODEL), Wish())) is None
    assert plan(usual_candidates(MODEL), Wish())["context"] == 4096  # the model's own
    assert chosen(plan(usual_candidates(MODEL), Wish(memory=2**40)))["name"] == "f16"
    assert chosen(plan(usual_candidates(MODEL), Wish(memory=2**20))) is None
    assert chosen(plan(FRONT, Wish(quality=4e-3)))["bytes_per_token"] == 3168


@pytest.mark.parametrize(
    ("candidates", "wish", "said"),
    [
        (
            "usual",
            Wish(memory=2**20, context=4096),
            "tcq2, the smallest of all, needs 6,684,672 bytes for 4,096 tokens",
        ),
        ("usual", Wish(memory=2**20, context=4096), "at most 640 tokens"),
        ("usual", Wish(memory=2**10, context=4096), r"1,024 are there: give more memory$"),
        (
            "front",
            Wish(memory=2**20, context=4096, quality=4e-3),
            "the smallest of those good enough, needs 12,976,128",
        ),
        ("front", Wish(memory=100, quality=4e-3), "not even one page"),
        ("front", Wish(context=4096, quality=1e-9), "lowest KLD is 6.97e-06 nats"),
    ],
)
def test_what_cannot_be_says_what_would_be_needed(candidates, wish, said):
    with pytest.raises(UserError, match=said):
        plan(FRONT if candidates == "front" else usual_candidates(MODEL, wish=wish), wish)


@pytest.mark.parametrize(
    ("memory", "context", "spans"),
    [(2**24, 4096, True), (2**23, 4096, False), (2**24, None, True), (2**20, None, False)],
)
def test_usual_profiles_have_the_default_spans_where_they_fit(memory, context, spans):
    wish = Wish(memory=memory, context=context)
    found = next(each.profile for each in usual_candidates(MODEL, wish=wish) if each.profile.name == "turbo3")
    assert any(found.spans) is spans


def test_types_that_the_model_cannot_store_are_not_offered():
    geometry = plain(4, head_dim=72)  # turbo needs one block of 72, and no such rotation exists
    assert [each.profile.name for each in usual_candidates(geometry)] == ["f16", "q8_0", "q4_0_rot"]
    assert len(usual_candidates(MODEL)) == len(USUAL)


def test_a_front_of_another_model_is_refused():
    with pytest.raises(UserError, match="12 KV layers, this one has 5"):
        front_candidates(evidence()["front"], plain(5))


def test_a_model_that_says_no_context_gets_no_column():
    geometry = ModelGeometry("silent", MODEL.layers, 0)
    data = plan(usual_candidates(geometry), Wish())
    assert data["context"] is None and all(row["cache_bytes"] is None for row in data["rows"])
