"""Spans in the server: groups of fine and of sealed pages, in company, with prefixes, preempted, saved and restored."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import GREEDY, answers, check_same, tokens_of
from tiny_models import loaded_tiny

from stratakv.engine.cache import KVCache
from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.pages.allocator import PageAllocator
from stratakv.pages.footprint import PIECE, allocated_bytes
from stratakv.pages.layout import PAGE_TOKENS as PAGE
from stratakv.profile import resolve
from stratakv.profile.spans import Spans
from stratakv.serve.capacity import plan_capacity
from stratakv.serve.groups import WindowGroup, capacities, window_groups
from stratakv.serve.request import GenerationRequest
from stratakv.serve.scheduler import Scheduler, Work
from stratakv.serve.sequence import Sequence, page_keys

RULE = "rest: turbo4; recent: 1 page turbo8; first: 1 page turbo8"
BY_LAYER = "0-2: turbo4, recent 2 pages turbo8, first 1 page turbo8; 3: turbo4, recent 1 page turbo8; rest: turbo4"
SLIDING = "1-2: f16, recent 2 pages f32; 3: f16, recent 1 page f32, first 1 page f32; rest: f16"
rules = pytest.mark.parametrize("rule", [RULE, BY_LAYER], ids=["of all layers", "by layer"])


def group(spans: Spans, part: Any, window: int | None = None) -> WindowGroup:
    return WindowGroup("full" if window is None else "sliding", window, (), 1, part, spans)


@given(
    st.sampled_from([Spans(1, first=1), Spans(2), Spans(0, first=2), Spans(3, first=2)]),
    st.integers(0, 3000),
    st.integers(1, 700),
    st.sampled_from([None, 500, 900]),
)
def test_a_step_holds_what_its_queries_see(spans: Spans, start: int, count: int, window: int | None) -> None:
    if window is not None:
        spans = Spans(min(spans.recent, window // PAGE))
    if not spans:
        return
    fine, sealed = (group(spans, part, window) for part in ("fine", "sealed"))
    held = {fine: set(fine.needs(start, start + count)), sealed: set(sealed.needs(start, start + count))}
    for position in {start, start + count // 2, start + count - 1}:
        for page in range(fine.first_visible(position) // PAGE, position // PAGE + 1):
            is_fine = page < spans.first or page >= position // PAGE - spans.recent
            assert page in held[fine if is_fine else sealed]
            assert not is_fine or fine.keeps(page, position)
    end = start + count
    for one, pages in held.items():
        assert len(pages) <= one.pages_for(end, count)
        kept = {page for page in pages if one.keeps(page, end)}
        assert kept <= set(one.needs(end, end + 1)) and kept == set(one.needs(end, end + 1)) & pages
        # what is shared is what a sequence would hold that comes there by itself
        whole = end // PAGE
        assert set(one.prefix(whole)) <= set(one.needs(max(whole * PAGE, 1), whole * PAGE + 1))
        assert all(page < max(one.complete(whole * PAGE), 0) for page in one.prefix(whole))


def step(target: Scheduler) -> list[Work]:
    work = target.plan(256)
    for item in work:
        for one, table in zip(target.groups, item.sequence.tables, strict=True):
            assert set(one.needs(item.start, item.start + item.count)) <= set(table.pages)
    for pool in target.pools:
        assert pool.used + pool.free + pool.cached == pool.capacity
    target.advance(work)
    for item in work:
        if item.draws:
            item.sequence.tokens.append(7)
    return work


def add(target: Scheduler, number: int, prompt: list[int]) -> Sequence:
    request = GenerationRequest(tuple(prompt), 10_000)
    keys = page_keys(request.prompt, b"salt")
    made = Sequence(number, request, list(prompt), keys, target.new_tables())
    target.add(made)
    return made


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_whatever_comes_all_are_served_and_nothing_is_lost(data: st.DataObject) -> None:
    spans = data.draw(st.sampled_from([Spans(1, first=1), Spans(2), Spans(0, first=1)]))
    groups = [group(spans, part) for part in ("sealed", "fine")]
    slots, context = data.draw(st.integers(1, 4)), 1024
    pages = data.draw(st.integers(context // PAGE, slots * context // PAGE))
    counts = [one.reserve(pages, slots, context, 256) for one in groups]
    target = Scheduler(groups, [PageAllocator(count) for count in counts], slots=slots, chunk=256)
    left = {}
    for number in range(data.draw(st.integers(1, 8))):
        same = data.draw(st.sampled_from([0, number]))
        made = add(target, number, [same] * data.draw(st.integers(1, 900)))
        left[made] = data.draw(st.integers(1, 120))
    for _ in range(4000):
        if not left:
            break
        for item in step(target):
            if item.draws and item.sequence in left:
                left[item.sequence] -= 1
                if not left[item.sequence]:
                    target.remove(item.sequence)
                    del left[item.sequence]
    assert not left
    assert all(pool.used == 0 for pool in target.pools)


def test_fine_pages_of_the_prompt_s_end_are_kept_longest() -> None:
    groups = [group(Spans(1, first=1), part) for part in ("sealed", "fine")]
    target = Scheduler(groups, [PageAllocator(40), PageAllocator(6)], slots=3, chunk=256)
    prompt = list(range(8 * PAGE - 24))
    first = add(target, 0, prompt)
    while first.in_prompt:
        step(target)
    target.remove(first)
    again = add(target, 1, [*prompt, 1, 2])
    step(target)
    assert again.cached == 7 * PAGE
    target.remove(again)
    parted = add(target, 2, [*prompt[: 5 * PAGE + 60], 5])
    step(target)
    assert parted.cached == 3 * PAGE  # where fine pages were taken for later ones, their tokens are computed again
    target.remove(parted)


@rules
def test_the_same_prompt_in_any_pieces_alone_and_among_others(
    engines: Any, loaded: LoadedModel, text_ids: list[int], rule: str
) -> None:
    prompt = tuple(text_ids[:700])
    alone = None
    for chunk in (512, PAGE, PAGE // 2):
        engine = engines(rule, slots=3, prefill_chunk=chunk)
        asked = [GenerationRequest(prompt, 12, GREEDY, cache_prompt=False)]
        others = [
            GenerationRequest(tuple(text_ids[at : at + 300]), 40, GREEDY, cache_prompt=False) for at in (100, 333)
        ]
        if alone is None:
            alone = tokens_of(answers(engine, asked)[0][1])
        check_same(tokens_of(answers(engine, asked)[0][1]), alone)
        check_same(tokens_of(answers(engine, asked + others)[0][1]), alone)
    cache = KVCache(loaded.model.config, rule)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        logits = loaded.model(ids, past_key_values=cache).logits[0, -1].log_softmax(-1)
    assert abs(float(logits[alone[0].id]) - alone[0].logprob) < 0.1


def test_pages_are_what_a_sequence_alone_has(engines: Any, loaded: LoadedModel, text_ids: list[int]) -> None:
    """The first layer's states come of the tokens alone: there bytes are equal, fine and sealed."""
    engine = engines(RULE, slots=2, prefill_chunk=200, own=True)
    prompt = tuple(text_ids[: 7 * PAGE + 4])
    answers(engine, [GenerationRequest(prompt, 1, GREEDY), GenerationRequest(tuple(text_ids[500:800]), 9, GREEDY)])
    cache = KVCache(loaded.model.config, RULE)
    with torch.inference_mode():
        loaded.model(torch.tensor([prompt]), past_key_values=cache)
    layer, keys = cache.layers[0], engine.cache.keys(prompt)
    for one, pools, ids in zip(engine.cache.groups, engine.cache.runner.pools, engine.cache.pools, strict=True):
        tables = layer.written if one.part == "fine" else layer.sealed.tables
        shared = list(one.prefix(7))
        assert shared == ([0, 6] if one.part == "fine" else [1, 2, 3, 4, 5])
        for page in shared:
            theirs = tables.pool.read(torch.tensor(tables.column(page)))
            ours = pools[0].read(torch.tensor([ids.lookup(keys[page])]))
            assert torch.equal(ours, theirs)


def test_pieces_of_one_step_see_what_the_step_seals(engines: Any, loaded: LoadedModel, text_ids: list[int]) -> None:
    """Computed by page, a step has four pieces of a prompt. What pages held before is no state at all."""
    engine = engines(RULE, slots=2, prefill_chunk=4 * PAGE, deterministic=True, own=True)
    for pools in engine.cache.runner.pools:
        for pool in pools:
            pool.memory.fill_(0x7B)  # 61,000 as a float of two bytes
    for length, cached in ((4 * PAGE, 0), (6 * PAGE - 68, 4 * PAGE)):
        prompt = tuple(text_ids[:length])
        cache = KVCache(loaded.model.config, RULE)
        with torch.inference_mode():
            logits = loaded.model(torch.tensor([prompt]), past_key_values=cache).logits[0, -1].log_softmax(-1)
        _, pieces, finish = answers(engine, [GenerationRequest(prompt, 1, GREEDY)])[0]
        assert finish.cached_tokens == cached
        token = tokens_of(pieces)[0]
        assert abs(float(logits[token.id]) - token.logprob) < 0.1


@rules
def test_pieces_that_seal_their_own_pages_run_in_the_compiled_call(
    engines: Any, loaded: LoadedModel, text_ids: list[int], monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    stack: Any = loaded.model.model.forward.__self__
    compiled: list[int] = []
    run = stack._run
    monkeypatch.setattr(stack, "_run", lambda x, *rest: (compiled.append(x.shape[1]), run(x, *rest)))
    engine = engines(rule, slots=2, prefill_chunk=512, own=True)
    answers(engine, [GenerationRequest(tuple(text_ids[:900]), 3, GREEDY)])
    assert compiled == [512, 900 - 512, 1, 1]


@rules
def test_hits_change_no_answer(engines: Any, text_ids: list[int], rule: str) -> None:
    engine = engines(rule, slots=2)
    prompt = tuple(text_ids[: 5 * PAGE - 40])
    (_, theirs, cold) = answers(engine, [GenerationRequest(prompt, 12, GREEDY, cache_prompt=False)])[0]
    assert cold.cached_tokens == 0
    answers(engine, [GenerationRequest(prompt[: 4 * PAGE + 38], 200, GREEDY)])
    (_, ours, finish) = answers(engine, [GenerationRequest(prompt, 12, GREEDY)])[0]
    assert finish.cached_tokens == 4 * PAGE
    check_same(tokens_of(ours), tokens_of(theirs))


@pytest.mark.parametrize(
    ("model_type", "more", "parts"),
    [
        ("gemma3_text", {"sliding_window": 300}, ["sealed", "fine", "sealed", "fine"]),
        ("gemma3_text", {"sliding_window": PAGE + 1}, ["sealed", "fine", "whole"]),
        ("llama4_text", {"attention_chunk_size": 256}, ["sealed", "fine", "sealed", "fine"]),
        ("qwen3_next", {}, ["sealed", "fine"]),
        ("gemma3_text", {"sliding_window": 300, "rule": SLIDING}, ["sealed", "fine", "whole", "sealed", "fine"]),
    ],
    ids=["sliding", "a window within the span", "chunked", "one by one", "sliding, by layer"],
)
def test_layers_of_other_kinds(engines: Any, model_type: str, more: dict[str, Any], parts: list[str]) -> None:
    """Fine pages in f32 and sealed ones in f16: the tokens of a cache in f32."""
    rule = more.pop("rule", "rest: f16; recent: 1 page f32; first: 1 page f32")
    tiny = loaded_tiny(model_type, **more)
    generator = torch.Generator().manual_seed(1)
    prompts = [tuple(torch.randint(3, 97, (length,), generator=generator).tolist()) for length in (470, 5, 400, 260)]
    asked = [GenerationRequest(prompt, 30, GREEDY) for prompt in prompts]
    limits = {"model": tiny, "slots": 3, "context": 512, "cache_bytes": 2**24, "prefill_chunk": 200}
    engine = engines(rule, **limits)
    assert [one.part for one in engine.cache.groups] == parts
    expected = answers(engines("f32", **limits), asked)
    for found in (answers(engine, asked), answers(engine, asked)):
        for (_, ours, _), (_, theirs, _) in zip(found, expected, strict=True):
            check_same(tokens_of(ours), tokens_of(theirs), 0.02)
    assert engine.snapshot().pages_used == 0


def test_layers_are_shown_as_they_are_stored(engines: Any) -> None:
    """The layers that slide over a page and a token touch nothing but their recent page and their own: all is fine there."""
    tiny = loaded_tiny("gemma3_text", sliding_window=PAGE + 1)
    limits = {"model": tiny, "slots": 1, "context": 512, "cache_bytes": 2**24}
    layers = engines("rest: f16; recent: 1 page f32; first: 1 page f32", **limits).snapshot().layers
    shown = {(each.window, each.k, each.v, each.recent, each.first, each.fine) for each in layers}
    assert shown == {(PAGE + 1, "f32", "f32", 0, 0, None), (None, "f16", "f16", 1, 1, "f32")}


def test_too_little_memory_says_which_pages_are_missing(engines: Any) -> None:
    for context, said in (
        (8 * PAGE, f"0 sealed pages, one request of {8 * PAGE:,} tokens needs 6 of"),
        (2 * PAGE - 56, "0 fine pages, .* needs 2 of"),
    ):
        with pytest.raises(UserError, match=f"bytes of cache hold {said}"):
            engines(RULE, slots=1, context=context, cache_bytes=10_000)
    with pytest.raises(UserError, match=f"bytes of cache hold 0 pages, one request of {8 * PAGE:,} tokens needs 8 of"):
        engines("turbo4", slots=1, context=8 * PAGE, cache_bytes=10_000)


def test_preempted_sequences_answer_as_alone(engines: Any, text_ids: list[int]) -> None:
    engine = engines(RULE, slots=3, context=700, cache_bytes=7_500_000, own=True)
    asked = [GenerationRequest(tuple(text_ids[at : at + 250]), 300, GREEDY, cache_prompt=False) for at in (0, 300, 600)]
    alone = [tokens_of(answers(engine, [each])[0][1]) for each in asked]
    before = engine.snapshot().counters.preempted
    together = answers(engine, asked)
    assert engine.snapshot().counters.preempted > before
    for (_, ours, _), theirs in zip(together, alone, strict=True):
        check_same(tokens_of(ours), theirs)


def restored_slot(engines: Any, rule: str, prompt: tuple[int, ...], path: Path) -> tuple[Any, list[int]]:
    """A fresh engine with the slot of another one, and the tokens that the other one answered."""
    engine = engines(rule, slots=2)
    (_, theirs, _) = answers(engine, [GenerationRequest(prompt, 8, GREEDY, slot=1)])[0]
    assert asyncio.run(engine.save_slot(1, path)).tokens == 5 * PAGE
    fresh = engines(rule, slots=2, own=True)
    asyncio.run(fresh.restore_slot(0, path))
    return fresh, tokens_of(theirs)


def test_slots_are_saved_and_restored_by_their_rule(engines: Any, text_ids: list[int], tmp_path: Path) -> None:
    path, prompt = tmp_path / "slot.bin", tuple(text_ids[: 5 * PAGE + 60])
    fresh, theirs = restored_slot(engines, RULE, prompt, path)
    snapshot = fresh.snapshot()
    assert {(kind.kind, kind.cached) for kind in snapshot.kinds} == {("fine", 2), ("sealed", 3)}
    again = tmp_path / "again.bin"
    asyncio.run(fresh.save_slot(0, again))
    assert again.read_bytes() == path.read_bytes()
    (_, ours, finish) = answers(fresh, [GenerationRequest(prompt, 8, GREEDY)])[0]
    assert finish.cached_tokens == 5 * PAGE
    check_same(tokens_of(ours), theirs)
    for other, words in (
        ("turbo4", "no spans"),
        (RULE.replace("recent: 1 page", "recent: 2 pages"), "recent: 2 pages turbo8"),
        (BY_LAYER, "recent: 1 page turbo8 and recent: 2 pages turbo8; first: 1 page turbo8"),
    ):
        with pytest.raises(
            UserError, match=f"saved with recent: 1 page turbo8; first: 1 page turbo8, this server has {words}"
        ):
            asyncio.run(engines(other, slots=2).restore_slot(0, path))


def test_slots_of_spans_by_layer_are_restored_by_the_same_layers_spans(
    engines: Any, text_ids: list[int], tmp_path: Path
) -> None:
    path, prompt = tmp_path / "slot.bin", tuple(text_ids[: 5 * PAGE + 60])
    fresh, theirs = restored_slot(engines, BY_LAYER, prompt, path)
    (_, ours, finish) = answers(fresh, [GenerationRequest(prompt, 8, GREEDY)])[0]
    assert finish.cached_tokens == 5 * PAGE
    check_same(tokens_of(ours), theirs)
    moved = BY_LAYER.replace("0-2: ", "1-3: ").replace("; 3: ", "; 0: ")
    with pytest.raises(UserError, match="saved with layer 0: recent: 2 .* this server has layer 0: recent: 1"):
        asyncio.run(engines(moved, slots=2).restore_slot(0, path))


def test_a_poisoned_sequence_fails_alone(engines: Any, loaded: LoadedModel, text_ids: list[int]) -> None:
    engine = engines(RULE, slots=2, own=True)
    bad, good = (GenerationRequest(tuple(text_ids[at : at + 300]), 8, GREEDY) for at in (0, 400))
    expected = tokens_of(answers(engine, [good])[0][1])
    embedding = loaded.model.get_input_embeddings()
    marked = bad.prompt[150]
    token = next(id_ for id_ in range(loaded.model.config.vocab_size) if id_ not in good.prompt)
    poisoned = GenerationRequest((*bad.prompt[:150], token, *bad.prompt[151:]), 8, GREEDY)
    assert marked != token

    def poison(module: Any, given: Any, out: torch.Tensor) -> torch.Tensor:
        return torch.where((given[0] == token)[..., None], torch.nan, out)

    handle = embedding.register_forward_hook(poison)
    try:
        (_, _, failed), (_, ours, fine) = answers(engine, [poisoned, good])
    finally:
        handle.remove()
    assert failed.reason == "error" and "layer 0, K" in (failed.error or "")
    assert fine.reason != "error"
    check_same(tokens_of(ours), expected)


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("context", [200, 1024, 4096])
def test_capacity_counts_both_kinds(loaded: LoadedModel, slots: int, context: int) -> None:
    profile = resolve("rest: turbo4; recent: 2 pages turbo8; first: 1 page turbo8", loaded.geometry)
    groups = window_groups(profile)
    assert [one.part for one in groups] == ["sealed", "fine"]
    together = slots * -(-context // PAGE) * PAGE
    got = plan_capacity(profile, slots=slots, chunk=PIECE, context=together, memory=None, free=2**34)
    assert got.tokens >= slots * context
    assert got.cache_bytes == allocated_bytes(profile, context, sequences=slots), "what `plan` counts"
    for memory in (got.cache_bytes, got.cache_bytes + 10**6, 4 * got.cache_bytes):
        again = plan_capacity(profile, slots=slots, chunk=PIECE, context=context, memory=memory, free=2**34)
        assert again.tokens >= slots * context
        pages = capacities(groups, again.cache_bytes, slots, again.context, PIECE)
        assert all(count >= one.pages_for(again.context, PIECE) for one, count in zip(groups, pages, strict=True))
        assert sum(count * one.page_bytes for count, one in zip(pages, groups, strict=True)) <= memory
    with pytest.raises(UserError, match="holds 0 tokens"):
        plan_capacity(profile, slots=slots, chunk=PIECE, context=context, memory=10_000, free=2**34)
