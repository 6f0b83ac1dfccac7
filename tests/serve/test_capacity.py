"""What -c, -np and --cache-memory mean in tokens and bytes, and what is refused before a model is loaded."""

from __future__ import annotations

import pytest
from geometries import plain, sliding
from hypothesis import given
from hypothesis import strategies as st

from stratakv import UserError, resolve
from stratakv.serve.capacity import capacity_line, plan_capacity
from stratakv.serve.groups import capacities, window_groups

GIB = 2**30


def plan(profile="turbo4", model=None, **options):
    given_ = {"slots": 4, "chunk": 512, "context": None, "memory": None, "free": 8 * GIB, **options}
    return plan_capacity(resolve(profile, model or plain(12)), **given_)


def test_context_is_shared_and_one_may_use_it_all():
    got = plan(context=2000)
    assert (got.context, got.tokens) == (2000, 2048)
    assert got.cache_bytes == 2048 * 3168


def test_memory():
    got = plan(memory=3168 * 128 * 10 + 5)
    assert (got.context, got.tokens) == (1280, 1280)
    got = plan(memory=GIB)
    assert got.context == 4096 and got.tokens == GIB // (3168 * 128) * 128
    assert plan(memory=GIB, context=512).context == 512


def test_the_same_memory_holds_more_tokens_in_fewer_bits():
    assert plan("turbo4", memory=GIB).tokens > 3.8 * plan("f16", memory=GIB).tokens


def test_neither():
    got = plan()
    assert (got.context, got.tokens, got.notes) == (4096, 4 * 4096, ())
    little = plan(free=2 * 3168 * 128 * 40)
    assert little.tokens == 5120 and little.context == 4096 and "requests may have to wait" in little.notes[0]
    least = plan(free=2 * 3168 * 128 * 3)
    assert least.tokens == 384 and 0 < least.context <= 384


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
    assert f"{got.tokens:,} tokens" in capacity_line(profile, got, slots)
