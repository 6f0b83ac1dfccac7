"""What -c, -np and --cache-memory mean in tokens and bytes, and what is refused before a model is loaded."""

from __future__ import annotations

import argparse
import shlex

import pytest
from geometries import plain, sliding
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from stratakv import UserError, resolve
from stratakv.cli.plan import _bare, _command
from stratakv.cli.profile_options import profile_from_args
from stratakv.cli.serve import add_parser
from stratakv.pages.footprint import pages_of
from stratakv.pages.layout import PAGE_TOKENS as PAGE
from stratakv.plan import Wish, usual_candidates
from stratakv.plan import plan as plan_rows
from stratakv.profile import LayerGeometry, ModelGeometry
from stratakv.profile.parse import with_default_spans
from stratakv.serve.capacity import affordable, capacity_line, plan_capacity, working_bytes
from stratakv.serve.groups import capacities, window_groups

GIB = 2**30
SPANS = {"recent": (8, "turbo8"), "first": (8, "turbo8")}


def plan(profile="turbo4", model=None, **options):
    given_ = {"slots": 4, "chunk": 512, "context": None, "memory": None, "free": 8 * GIB, **options}
    return plan_capacity(resolve(profile, model or plain(12)), **given_)


def test_context_is_shared_and_one_may_use_it_all():
    got = plan(context=2000)
    whole = -(-2000 // PAGE) * PAGE
    assert (got.context, got.tokens) == (2000, whole)
    assert got.cache_bytes == whole * 3168


def test_memory():
    got = plan(memory=3168 * 1280 + 5)
    assert (got.context, got.tokens) == (1280, 1280)
    got = plan(memory=GIB)
    assert got.context == 4096 and got.tokens == GIB // (3168 * PAGE) * PAGE
    assert plan(memory=GIB, context=512).context == 512


def test_default_spans_are_left_out_where_they_would_shorten_requests():
    """No option that was accepted without spans is refused, or gives shorter requests, since there are default ones."""
    bare = resolve("turbo4", plain(12))
    profile = with_default_spans(bare)

    def taken(**options):
        given_ = {"slots": 4, "chunk": 512, "context": None, "memory": None, "free": 8 * GIB, **options}
        return affordable(profile, bare, lambda each: plan_capacity(each, **given_))

    roomy, got = taken(memory=GIB)
    assert roomy is profile and got.context == 4096 and "without spans" in got.notes[-1]
    assert taken()[0] is profile
    for options in ({"memory": 4096 * 3168}, {"memory": 4096 * 3168, "context": 4096}, {"memory": 128 * 3168}):
        tight, got = taken(**options)
        assert got == plan(**options) and tight.spans == bare.spans and "no spans" in tight.notes[0]
    assert taken(context=128)[1].context == 128
    with pytest.raises(UserError, match="one request needs 4,096"):
        taken(memory=4000 * 3168, context=4096)


def test_the_same_memory_holds_more_tokens_in_fewer_bits():
    assert plan("turbo4", memory=GIB).tokens > 3.8 * plan("f16", memory=GIB).tokens


def test_neither():
    got = plan()
    assert (got.context, got.tokens, got.notes) == (4096, 4 * 4096, ())
    little = plan(free=2 * 3168 * 5120)
    assert little.tokens == 5120 and little.context == 4096 and "requests may have to wait" in little.notes[0]
    least = plan(free=2 * 3168 * 384)
    assert least.tokens == 384 and 0 < least.context <= 384


def test_working_memory_grows_with_steps_and_slots():
    config = AutoConfig.for_model("llama", hidden_size=128, intermediate_size=200, vocab_size=1000)
    least = working_bytes(config, slots=1, chunk=1)
    assert least >= 64 * 2**20
    assert working_bytes(config, slots=1, chunk=1001) - least == 4 * 1000 * (8 * 128 + 4 * 200)
    more = working_bytes(config, slots=11, chunk=1) - least
    assert more == 4 * 10 * (8 * 128 + 4 * 200 + 4 * 1000)
    assert working_bytes(AutoConfig.for_model("gpt2"), slots=4, chunk=512) < 256 * 2**20


def test_refusals():
    with pytest.raises(UserError, match=r"needs 6\.\d+ GiB, 4\.00 GiB are free beside the weights"):
        plan("f32", context=300_000, free=4 * GIB)
    with pytest.raises(UserError, match="holds 0 tokens at 3,168 bytes each"):
        plan(memory=1000)
    with pytest.raises(UserError, match="one request needs 4,096"):
        plan(memory=2**20, context=4096)
    with pytest.raises(UserError, match="half of the free memory"):
        plan(free=1000)
    with pytest.raises(UserError, match="are free"):
        plan(context=128, free=-5)
    assert "never trained" in plan(context=5000).notes[0]


@settings(deadline=None)
@given(
    st.sampled_from([plain(12), sliding(), plain(3, context=100), plain(2, context=0)]),
    st.integers(1, 9),
    st.integers(1, 2048),
    st.one_of(st.none(), st.integers(1, 20_000)),
    st.one_of(st.none(), st.integers(1, 2**26)),
    st.integers(0, 2**27),
)
def test_what_is_promised_fits_the_engine(model, slots, chunk, context, memory, free):
    """One request of the promised context has pages in every group: the engine refuses anything else."""
    profile = resolve("turbo4", model)
    try:
        got = plan_capacity(profile, slots=slots, chunk=chunk, context=context, memory=memory, free=free)
    except UserError:
        return
    assert 0 < got.context <= got.tokens and got.cache_bytes <= free
    groups = window_groups(profile)
    pages = capacities(groups, got.cache_bytes, slots, got.context, chunk)
    assert all(count >= group.pages_for(got.context, chunk) for group, count in zip(groups, pages, strict=True))
    line, fine = capacity_line(profile, got, slots), 0
    for group, count in zip(groups, pages, strict=True):
        fine += group.page_bytes * count if group.part == "fine" else 0
    assert f"{got.tokens:,} tokens" in line and got.fine_bytes == fine
    assert ("are fine pages of spans" in line) is (fine > 0)


def geometries() -> st.SearchStrategy[ModelGeometry]:
    """Models of full, sliding and chunked layers, some without full ones."""

    def model(kinds: list[tuple[str, int, int]], context: int) -> ModelGeometry:
        layers = [
            LayerGeometry(i, i, role, (dim, dim), heads, 2 * heads, window=None if role == "full" else window)
            for i, ((role, heads, dim), window) in enumerate(
                zip(kinds, [512, 512, 1024, 200, 128, 4096] * 2, strict=False)
            )
        ]
        return ModelGeometry("drawn", tuple(layers), context)

    kind = st.tuples(
        st.sampled_from(["full", "sliding", "sliding", "chunked"]), st.integers(1, 3), st.sampled_from([64, 128, 256])
    )
    return st.builds(model, st.lists(kind, min_size=1, max_size=12), st.sampled_from([0, 2048, 8192, 32768]))


@settings(max_examples=200, deadline=None)
@given(
    geometries(),
    st.integers(100, 2**16),
    st.one_of(st.none(), st.integers(1, 40_000)),
    st.integers(1, 5),
    st.sampled_from([{}, {}, SPANS, {"recent": (2, "turbo8")}, {"first": (1, "turbo8")}]),
)
def test_what_plan_prints_is_what_serve_takes(geometry, kib, context, sequences, sizes):
    """The printed command is accepted, within the memory, with the bytes of the table."""
    wish = Wish(kib * 1024, context, sequences=sequences)
    try:
        candidates = usual_candidates(geometry, sizes, wish)
        data = plan_rows(candidates, wish)
    except UserError:
        return
    command = _command("m.gguf", data, _bare(candidates))
    if command is None:
        return
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(shlex.split(command)[1:])
    profile = profile_from_args(args, geometry, environ={})
    options = {"slots": args.parallel, "chunk": args.batch_size, "context": args.ctx_size, "free": 2**40}
    got = plan_capacity(profile, memory=None, **options)
    row = data["rows"][data["recommended"]]
    assert got.cache_bytes <= kib * 1024
    if data["context"] is not None:
        assert got.cache_bytes == row["cache_bytes"]
        assert got.context >= data["context"] and got.tokens >= sequences * data["context"]
        # said as a budget of bytes too, and with more slots than fit: some requests wait then
        one = {**options, "context": data["context"]}
        for slots in (args.parallel, 4 * args.parallel):
            assert plan_capacity(profile, memory=kib * 1024, **{**one, "slots": slots}).context == data["context"]
    groups = window_groups(profile)
    pages = capacities(groups, got.cache_bytes, args.parallel, got.context, args.batch_size)
    assert sum(count * group.page_bytes for count, group in zip(pages, groups, strict=True)) == got.cache_bytes


@pytest.mark.parametrize("context", [4096, 2100, None])
def test_spans_of_several_sequences_are_counted_as_serve_does(context):
    """-np 4 --recent 8 --first 8: the sequences share a piece of a prompt, and one alone may use all pages."""
    model = plain(12)
    candidates = [each for each in usual_candidates(model, SPANS) if each.profile.name == "turbo4"]
    data = plan_rows(candidates, Wish(GIB, context, sequences=4))
    row = data["rows"][data["recommended"]]
    args = shlex.split(_command("m.gguf", data, set()))
    assert args[args.index("-np") + 1] == "4"
    profile, tokens = resolve(args[args.index("--profile") + 1], model), int(args[args.index("-c") + 1])
    assert profile.spans[0].first == profile.spans[0].recent == 8
    got = plan_capacity(profile, slots=4, chunk=512, context=tokens, memory=None, free=row["cache_bytes"])
    assert got.cache_bytes == row["cache_bytes"] and got.tokens >= 4 * data["context"]
    pages = tokens // PAGE
    own, fine = profile.bytes_per_token, min(pages, 4 * 17 + (512 + 4 * (PAGE - 2)) // PAGE)
    assert row["cache_bytes"] == PAGE * ((pages - 16) * own + fine * 12 * 520)


def test_gemma_s_windows_are_counted_by_what_they_need():
    """Gemma 3 270M: 15 of 18 layers slide over 512 tokens, 1 kv head of 256."""
    roles = [("full", None) if i % 6 == 5 else ("sliding", 512) for i in range(18)]
    layers = tuple(LayerGeometry(i, i, role, (256, 256), 1, 4, window=window) for i, (role, window) in enumerate(roles))
    geometry = ModelGeometry("gemma", layers, 32768)
    for mib, name, token in ((36, "q8_0", 544), (41, "f16", 1024)):
        data = plan_rows(usual_candidates(geometry), Wish(mib * 2**20, 8192))
        row = data["rows"][data["recommended"]]
        assert row["name"] == name and row["cache_bytes"] == PAGE * token * (
            8192 // PAGE * 3 + pages_of(8192, 512) * 15
        )
        for slots in (1, 4):
            got = plan_capacity(
                resolve(name, geometry), slots=slots, chunk=512, context=8192, memory=mib * 2**20, free=GIB
            )
            assert got.context == 8192 and got.cache_bytes <= mib * 2**20
