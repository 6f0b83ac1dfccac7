"""The table: numbers of the data, and text that says the same."""

from __future__ import annotations

import json

import pytest
from geometries import hybrid, plain, sliding

from stratakv.errors import UserError
from stratakv.profile import resolve
from stratakv.profile.spans import PAGE_TOKENS as PAGE
from stratakv.profile.table import format_table, show_table


def test_data_of_edges3():
    data = show_table(resolve("edges3", plain(12)), [1000])
    assert json.loads(json.dumps(data)) == data
    assert data["schema"] == "stratakv/show/1"
    assert data["layers"][0] == {
        "layer": 0,
        "ordinal": 0,
        "role": "full",
        "k": "q8_0",
        "v": "turbo4",
        "bytes_per_token": 2 * (136 + 66),
        "window": None,
        "spans": None,
        "all_fine": False,
        "applied": True,
        "why": None,
    }
    assert data["bytes_per_token"] == sum(row["bytes_per_token"] for row in data["layers"]) == 6 * 404 + 6 * 264
    assert data["bpv"] == pytest.approx((6 * 6.3125 + 6 * 4.125) / 12)
    assert data["f16_bytes_per_token"] == 12 * 2 * 2 * 256
    assert data["bytes_at_context"] == {str(n): 4008 * n for n in (512, 1000, 4096)}
    assert data["warnings"] == []
    assert "fork_bytes_per_token" not in data


def test_layers_left_alone_say_why():
    data = show_table(resolve("turbo4", sliding()))
    assert [row["applied"] for row in data["layers"]] == [True, True, True, False]
    alone = data["layers"][3]
    assert (alone["ordinal"], alone["k"], alone["v"], alone["bytes_per_token"]) == (None, None, None, 0)
    assert alone["why"] == "reads the cache of another layer"
    assert show_table(resolve("turbo4", hybrid(8)))["layers"][0]["why"].startswith("linear attention keeps a state")


def test_windows_count_in_the_bytes():
    data = show_table(resolve("turbo4", sliding()), [8192])
    assert data["bytes_at_context"]["8192"] == 2 * 1024 * 132 + 8192 * (132 + 66)
    assert "keeps 1,024 tokens" in format_table(data)


def test_context_beyond_the_model_is_said():
    data = show_table(resolve("turbo4", plain(12)), [5000], warnings=["from the model"])
    assert data["warnings"][0] == "from the model"
    assert data["warnings"][1].startswith(
        "context 5000 is beyond the model's 4096: it was not trained on later positions"
    )
    assert "5000" in data["bytes_at_context"]
    assert show_table(resolve("turbo4", plain(12)), [4096])["warnings"] == []
    assert show_table(resolve("turbo4", plain(12, context=0)), [10**6])["warnings"] == []


@pytest.mark.parametrize("context", [0, -5])
def test_context_must_be_positive(context):
    with pytest.raises(UserError, match=f"context {context}: it must be at least 1"):
        show_table(resolve("turbo4", plain(12)), [context])


def test_spans_in_the_table():
    profile = resolve("turbo4; recent: 2 pages; first: 1 page", plain(2, context=131072))
    data = show_table(profile, [1000])
    assert data["layers"][1]["spans"] == {"recent": 2, "recent_type": "turbo8", "first": 1, "first_type": "turbo8"}

    def fine(tokens: int) -> int:
        """The first page's, and those of the last one and two before it."""
        return min(tokens, PAGE + tokens - ((tokens - 1) // PAGE - 2) * PAGE)

    more = 2 * 2 * 256 // 2  # a token of both layers in turbo8 instead of turbo4: 4 bits of 256 values of 2 heads
    assert data["spans_bytes_at_context"]["512"] == fine(512) * more
    assert data["spans_bytes_at_context"]["1000"] == fine(1000) * more
    assert data["bytes_at_context"]["4096"] == 4096 * 2 * 264 + fine(4096) * more
    lines = format_table(data).splitlines()
    assert lines[2].endswith("264 each     recent: 2 pages turbo8; first: 1 page turbo8")
    assert lines[3] == "528 bytes a token outside of spans, 4.125 bpv, 25.8% of f16"
    assert [line.rpartition(", ")[2] for line in lines[-3:]] == [
        f"{fine(tokens) * more / (tokens * 528):.1%} more than without spans" for tokens in (4096, 32768, 131072)
    ]
    length = 3 * PAGE - 1
    with pytest.raises(
        UserError, match=rf"spans of 3 pages \({3 * PAGE} tokens\) are longer than the context of {length} tokens"
    ):
        show_table(profile, [length])


def test_spans_of_layers_that_slide():
    text = format_table(show_table(resolve("turbo4; recent: 2 pages; first: 1 page", sliding())))
    assert "keeps 1,024 tokens; recent: 2 pages turbo8\n" in text
    assert "warning: spans of KV layers 0-1: no first pages, they leave a window of 1,024 tokens" in text
    assert "all that it keeps" not in text
    window = f"turbo4; recent: {1024 // PAGE} pages"
    data = show_table(resolve(window, sliding()))
    assert [row["all_fine"] for row in data["layers"]] == [True, True, False, False]
    assert f"keeps 1,024 tokens; recent: {1024 // PAGE} pages turbo8 (all that it keeps)\n" in format_table(data)


def test_what_is_fine_as_a_whole():
    profile = resolve("turbo4; recent: 2 pages; first: 1 page", plain(2))
    assert [profile.seals_at(tokens) for tokens in (1, 4 * PAGE, 4 * PAGE + 1, 4096)] == [False, False, True, True]
    assert resolve("turbo4", plain(2)).seals_at(1)
    mixed = resolve(f"turbo4; recent: {1024 // PAGE} pages", sliding())
    assert [mixed.seals_at(tokens) for tokens in (1024 + PAGE, 1025 + PAGE)] == [False, True]  # by its full layer alone


def test_text_folds_equal_neighbours():
    assert format_table(show_table(resolve("edges3", plain(12)))).splitlines() == [
        "plain-12: profile edges3",
        "layer  KV layer  role  K       V       bytes/token",
        "0-2    0-2       full  q8_0    turbo4  404 each",
        "3-8    3-8       full  turbo4  turbo4  264 each",
        "9-11   9-11      full  q8_0    turbo4  404 each",
        "4,008 bytes a token, 5.219 bpv, 32.6% of f16",
        "at       512 tokens: 1.96 MiB",
        "at     4,096 tokens: 15.66 MiB",
    ]


def test_text_of_a_hybrid_as_the_fork():
    text = format_table(show_table(resolve("mode7", hybrid(), compat_fork=True)))
    assert "hybrid-64: profile mode 7 as the fork" in text
    assert "left alone: linear attention" in text
    assert "the fork needs" in text
    assert "warning: compat: the fork counts all 64 layers, of which 16 have a KV cache" in text


def test_fork_bytes_are_in_the_data():
    data = show_table(resolve("turbo4", plain(8, head_dim=64), compat_fork=True))
    assert data["bytes_per_token"] == 8 * 2 * 2 * 34
    assert data["fork_bytes_per_token"] == 8 * 2 * 2 * 66
