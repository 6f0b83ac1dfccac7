"""Scheduling without a model: order, budgets, prefixes, preemption; whatever happens, every page comes back."""

from __future__ import annotations

import pytest
from geometries import plain, sliding
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.errors import UserError
from stratakv.pages.allocator import PageAllocator
from stratakv.pages.layout import PAGE_TOKENS as PAGE
from stratakv.pages.table import BlockTable
from stratakv.profile import resolve
from stratakv.serve.groups import WindowGroup, capacities, window_groups
from stratakv.serve.request import GenerationRequest
from stratakv.serve.scheduler import Scheduler, Work
from stratakv.serve.sequence import Sequence, page_keys

FULL = WindowGroup("full", None, (), 1)
WINDOW = WindowGroup("sliding", PAGE + 72, (), 1)
CHUNKED = WindowGroup("chunked", 256, (), 1)


def scheduler(pages: int, *, slots: int = 4, chunk: int = 256, groups: tuple[WindowGroup, ...] = (FULL,)) -> Scheduler:
    return Scheduler(list(groups), [PageAllocator(pages) for _ in groups], slots=slots, chunk=chunk)


def sequence(number: int, prompt: list[int], tables: list[BlockTable], slot: int | None = None) -> Sequence:
    request = GenerationRequest(tuple(prompt), 10_000, slot=slot)
    return Sequence(number, request, list(prompt), page_keys(request.prompt, b"salt"), tables)


def add(target: Scheduler, number: int, prompt: list[int], slot: int | None = None) -> Sequence:
    made = sequence(number, prompt, target.new_tables(), slot)
    target.add(made)
    return made


def step(target: Scheduler, budget: int = 256) -> list[Work]:
    """Plan, check what must always hold, advance, and let each that draws have a token."""
    work = target.plan(budget)
    assert sum(item.count for item in work if item.prefill) <= budget
    seen = set()
    for item in work:
        assert item.sequence in target.running and item.sequence.id not in seen
        seen.add(item.sequence.id)
        assert item.start == item.sequence.computed and item.count > 0
        assert item.prefill == (item.start < item.sequence.prompt_tokens)
        for group, table in zip(target.groups, item.sequence.tables, strict=True):
            for position in (group.first_visible(item.start), item.start, item.start + item.count - 1):
                assert position // PAGE in table.pages
    for pool in target.pools:
        assert pool.used + pool.free + pool.cached == pool.capacity
    target.advance(work)
    for item in work:
        if item.draws:
            item.sequence.tokens.append(7)
    return work


def used(target: Scheduler) -> int:
    return sum(pool.used for pool in target.pools)


def test_decoding_and_prompts_share_a_step() -> None:
    target = scheduler(32)
    first = add(target, 0, [1] * 10)
    assert [(w.count, w.prefill, w.draws) for w in step(target)] == [(10, True, True)]
    second = add(target, 1, [2] * 500)
    work = step(target, 64)
    assert [(w.sequence, w.count, w.prefill) for w in work] == [(first, 1, False), (second, 64, True)]
    target.remove(first)
    target.remove(second)
    assert used(target) == 0


def test_prompts_share_the_budget_evenly() -> None:
    target = scheduler(64)
    long, short = add(target, 0, [1] * 2000), add(target, 1, [2] * 300)
    counts = {w.sequence.id: w.count for w in step(target, 128)}
    assert counts == {long.id: 64, short.id: 64}


@settings(max_examples=50, deadline=None)
@given(
    running=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    prompts=st.lists(st.integers(1, 900), min_size=1, max_size=3),
    budget=st.integers(1, 120),
)
def test_running_answers_get_a_token_in_every_step(running: list[int], prompts: list[int], budget: int) -> None:
    target = scheduler(1000, slots=8)
    answering = [add(target, number, [number] * length) for number, length in enumerate(running)]
    while any(one.in_prompt for one in answering):
        step(target)
    reading = [add(target, 10 + number, [10 + number] * length) for number, length in enumerate(prompts)]
    while any(one.in_prompt for one in reading):
        before = [one.generated for one in answering]
        work = step(target, budget)  # which checks that the budget is kept
        assert any(item.prefill for item in work)
        assert [one.generated for one in answering] == [count + 1 for count in before]


def test_starts_in_order_and_waits_for_pages() -> None:
    target = scheduler(5, slots=8)
    add(target, 0, [1] * (2 * PAGE + 44))  # three pages
    add(target, 1, [2] * (2 * PAGE + 44))
    add(target, 2, [3] * 10)
    step(target)
    assert [s.id for s in target.running] == [0]  # the second doesn't fit, the third doesn't overtake it
    assert [s.id for s in target.waiting] == [1, 2]


def test_a_request_waits_for_its_slot_and_lets_others_pass() -> None:
    target = scheduler(32, slots=2)
    first = add(target, 0, [1] * 10, slot=1)
    second = add(target, 1, [1] * 10, slot=1)
    third = add(target, 2, [1] * 10)
    step(target)
    assert (first.slot, second.slot, third.slot) == (1, None, 0)
    target.remove(first)
    step(target)
    assert second.slot == 1


def test_the_youngest_gives_its_pages_and_is_computed_again() -> None:
    target = scheduler(4, slots=2)
    length = PAGE - 2
    old, young = add(target, 0, [1] * length), add(target, 1, [2] * length)
    for _ in range(PAGE + 12):
        step(target)
    assert target.preempted == 1
    assert old in target.running and young in target.waiting
    kept = len(young.tokens)
    assert young.computed == 0 and kept > length
    target.remove(old)
    work = step(target)
    assert [(w.prefill, w.count) for w in work] == [(True, length)]
    work = step(target)  # tokens of the answer again, by decode attention
    assert [(w.prefill, w.count, w.draws) for w in work] == [(False, kept - length, True)]
    target.remove(young)
    assert used(target) == 0


def test_whole_pages_of_prompts_are_found_again() -> None:
    target = scheduler(32)
    first = add(target, 0, list(range(2 * PAGE + 44)))
    while first.in_prompt:
        step(target)
    target.remove(first)
    assert target.pools[0].cached == 2 and used(target) == 0
    second = add(target, 1, [*range(2 * PAGE + 34), 999])
    work = step(target)
    assert second.cached == 2 * PAGE and [(w.start, w.count) for w in work] == [(2 * PAGE, 35)]
    exact = add(target, 2, list(range(2 * PAGE)))  # the last token is computed for its logits
    step(target)
    assert exact.cached == PAGE
    other = add(target, 3, [5, *range(1, 2 * PAGE + 44)])
    step(target)
    assert other.cached == 0


def test_windows_drop_pages_and_are_found_by_their_last_pages() -> None:
    target = scheduler(32, groups=(FULL, WINDOW))
    prompt = list(range(8 * PAGE - 24))
    first = add(target, 0, prompt)
    while first.in_prompt:
        step(target)
    assert min(first.tables[1].pages) == (len(prompt) - PAGE - 71) // PAGE and len(first.tables[0].pages) == 8
    target.remove(first)
    second = add(target, 1, [*prompt, 5])
    step(target)
    assert second.cached == 7 * PAGE
    target.pools[1].discard(second.keys[5])
    third = add(target, 2, [*prompt, 6])
    step(target)
    assert third.cached == 5 * PAGE  # tokens up to there need no page of the window group after the lost one
    for one in (second, third):
        target.remove(one)
    assert used(target) == 0


def test_prompts_in_chunked_attention_stop_at_its_borders() -> None:
    target = scheduler(32, groups=(FULL, CHUNKED), chunk=512)
    add(target, 0, [1] * 700)
    assert [step(target, 200)[0].count for _ in range(4)] == [200, 56, 200, 56]


def test_prompts_by_page_are_cut_where_pages_end_whatever_the_budget() -> None:
    """The same pieces of the same prompt: beside others or alone, after a prefix or from the beginning."""
    prompt, cuts = list(range(2 * PAGE + 44)), [(0, PAGE), (PAGE, PAGE), (2 * PAGE, 44)]
    for budget in (1, 100, 200, 256):
        target = Scheduler([FULL], [PageAllocator(20)], slots=4, chunk=2 * PAGE, by_page=True)
        first, _ = add(target, 0, prompt), add(target, 1, [9] * 200)
        pieces: list[tuple[int, int]] = []
        while first.in_prompt:
            work = target.plan(budget)
            assert sum(item.count for item in work if item.prefill) < budget + PAGE
            pieces += [(item.start, item.count) for item in work if item.sequence is first]
            target.advance(work)
        assert pieces == cuts
        again = add(target, 2, prompt)
        work = target.plan(2 * PAGE)
        assert [(item.start, item.count) for item in work if item.sequence is again] == cuts[2:]
    with pytest.raises(UserError, match=f"{PAGE} tokens or more"):
        Scheduler([FULL], [PageAllocator(20)], slots=4, chunk=PAGE // 2, by_page=True)


def test_groups_of_a_model_share_one_budget() -> None:
    groups = window_groups(resolve("turbo4", sliding()))
    assert [(g.kind, g.window, [layer.layer for _, layer in g.layers]) for g in groups] == [
        ("full", None, [2]),
        ("sliding", 1024, [0, 1]),
    ]
    for budget in (2**22, 2**24, 2**27):
        pages = capacities(groups, budget, 4, 8192, 512)
        assert sum(n * g.page_bytes for n, g in zip(pages, groups, strict=True)) <= budget
    one = window_groups(resolve("turbo4", plain(4)))
    assert capacities(one, 10 * one[0].page_bytes + 5, 4, 8192, 512) == [10]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_page_is_lost_whatever_happens(data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from([(FULL,), (FULL, WINDOW), (WINDOW,), (FULL, CHUNKED)]))
    target = scheduler(data.draw(st.integers(8, 14)), slots=data.draw(st.integers(1, 5)), groups=groups)
    alive: list[Sequence] = []
    for number in range(data.draw(st.integers(5, 60))):
        action = data.draw(st.sampled_from(["add", "step", "step", "step", "remove"]))
        if action == "add" and len(alive) < 8:
            length = data.draw(st.integers(1, 500))
            alive.append(add(target, number, [data.draw(st.integers(0, 1))] * length))
        elif action == "remove" and alive:
            gone = alive.pop(data.draw(st.integers(0, len(alive) - 1)))
            target.remove(gone)
        else:
            step(target, data.draw(st.integers(1, 400)))
        assert len(target.running) + len(target.waiting) == len(alive)
    for one in alive:
        target.remove(one)
    assert used(target) == 0
    assert sorted(target.free_slots) == list(range(len(target.free_slots)))


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 600), min_size=1, max_size=6), budget=st.integers(1, 300))
def test_every_prompt_gets_its_answer(lengths: list[int], budget: int) -> None:
    target = scheduler(10, slots=3)
    for number, length in enumerate(lengths):
        add(target, number, [number] * length)
    done = 0
    for _ in range(10_000):
        step(target, budget)
        for one in [s for s in target.running if s.generated >= 5]:
            target.remove(one)
            done += 1
        if done == len(lengths):
            break
    assert done == len(lengths) and used(target) == 0


def test_what_is_kept_beside_pages_goes_with_them() -> None:
    """A sequence that lost its pages kept a whole cache of its own while it waited."""
    target = scheduler(4)
    made = add(target, 0, list(range(PAGE)))
    step(target)
    made.private = object()
    target._preempt(made)
    assert made.private is None and made in target.waiting
