"""Many requests at once: the same tokens as alone, nothing lost, nobody hurt by somebody else's failure."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from serving import GREEDY, answers, check_same, tokens_of
from tiny_models import loaded_tiny

from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.serve.answer import Answer
from stratakv.serve.request import Finish, GenerationRequest, NotRunning, Piece, PromptTooLong, QueueFull
from stratakv.serve.samplers import SamplingParams
from stratakv.serve.ticket import collect
from stratakv.weights.stack import Stack


def prompts(ids: list[int], count: int, tokens: int = 12) -> list[GenerationRequest]:
    lengths = [3, 40, 129, 9, 260, 128, 77, 1]
    return [
        GenerationRequest(tuple(ids[311 * i : 311 * i + lengths[i % len(lengths)]]), tokens + 3 * (i % 4), GREEDY)
        for i in range(count)
    ]


@pytest.mark.parametrize("profile", ["f32", "edges3"])
def test_together_as_alone(engines: Any, text_ids: list[int], profile: str) -> None:
    engine = engines(profile, slots=6, prefix_cache=False)
    assert engine.cache.runner.batching.startswith("one forward call for all")
    requests = prompts(text_ids, 8)
    alone = [answers(engine, [request])[0] for request in requests]
    together = answers(engine, requests)
    for (_, ours, finish), (_, theirs, _) in zip(together, alone, strict=True):
        assert finish.reason == "length"
        check_same(tokens_of(ours), tokens_of(theirs))
    assert engine.snapshot().pages_used == 0


def test_as_the_cache_of_one_conversation(engines: Any, loaded: LoadedModel, text_ids: list[int]) -> None:
    from stratakv.engine.cache import KVCache

    engine = engines("f32")
    request = GenerationRequest(tuple(text_ids[:200]), 12, GREEDY)
    ((_, pieces, _),) = answers(engine, [request])
    ids = torch.tensor([request.prompt])
    with torch.inference_mode():
        out = loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=KVCache(loaded.model.config, "f32"),
            max_new_tokens=12,
            do_sample=False,
        )
    assert [token.id for token in tokens_of(pieces)] == out[0, 200:].tolist()


def test_a_small_pool_preempts_and_changes_nothing(engines: Any, text_ids: list[int]) -> None:
    big, small = (
        engines("turbo4", slots=4, prefix_cache=False),
        engines("turbo4", slots=4, context=384, cache_bytes=1_700_000),
    )
    requests = [GenerationRequest(tuple(text_ids[97 * i : 97 * i + 120]), 20, GREEDY) for i in range(4)]
    expected = [answers(big, [request])[0] for request in requests]
    found = answers(small, requests)
    for (_, ours, _), (_, theirs, _) in zip(found, expected, strict=True):
        check_same(tokens_of(ours), tokens_of(theirs))
    snapshot = small.snapshot()
    assert snapshot.counters.preempted > 0 and snapshot.pages_used == 0


def test_a_long_prompt_does_not_stall_the_others(engines: Any, text_ids: list[int]) -> None:
    """Counted in steps: while a prompt is computed, in chunks of the budget at most, every running answer gets a token."""
    engine = engines("turbo4", slots=4, own=True, prefix_cache=False)
    budget, prompt = 48, 480
    steps: list[list[tuple[int, int, bool]]] = []
    run = engine.cache.runner.run

    def recorded(work: Any) -> Any:
        steps.append([(item.sequence.id, item.count, item.prefill) for item in work])
        return run(work)

    engine.cache.runner.run = recorded
    engine.loop.budget.tokens = lambda decoding, prompts: (
        budget if decoding else 512
    )  # whatever it would learn from the clock

    async def short_then_long() -> tuple[list[int], int, list[Any]]:
        short = [engine.submit(GenerationRequest(tuple(text_ids[i : i + 9]), 40, GREEDY)) for i in range(3)]
        firsts = [await anext(ticket) for ticket in short]
        long = engine.submit(GenerationRequest(tuple(text_ids[:prompt]), 2, GREEDY))
        finishes = [(await collect(ticket))[2] for ticket in (*short, long)]
        assert all(isinstance(first, Piece) for first in firsts)
        return [ticket.id for ticket in short], long.id, finishes

    short, long, finishes = asyncio.run(short_then_long())
    assert [finish.completion_tokens for finish in finishes] == [40, 40, 40, 2]
    beside = [step for step in steps if any(id_ == long and prefill for id_, _, prefill in step)]
    assert len(beside) == prompt / budget
    for step in beside:
        assert {id_: (count, prefill) for id_, count, prefill in step if id_ != long} == dict.fromkeys(
            short, (1, False)
        )
        assert sum(count for _, count, prefill in step if prefill) <= budget


def test_short_pieces_of_prompts_run_in_the_compiled_call(
    engines: Any, loaded: LoadedModel, text_ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a call for each layer, 16 clients got 276 tokens a second of SmolLM2 instead of 486."""
    stack: Any = loaded.model.model.forward.__self__
    assert isinstance(stack, Stack)
    compiled: list[int] = []
    run = stack._run
    monkeypatch.setattr(stack, "_run", lambda x, *rest: (compiled.append(x.shape[1]), run(x, *rest)))
    engine = engines("turbo4", slots=4, own=True, prefix_cache=False)
    engine.loop.budget.tokens = lambda decoding, prompts: 16
    answers(engine, [GenerationRequest(tuple(text_ids[50 * i : 50 * i + 40]), 8, GREEDY) for i in range(3)])
    assert engine.snapshot().counters.steps == len(compiled)
    assert sum(compiled) == 3 * 40 + 3 * 7 > len(compiled)


@pytest.mark.parametrize("model_type", [None, "llama", "jamba", "falcon"])
def test_the_head_multiplies_the_tokens_that_logits_are_wanted_of(
    engines: Any, loaded: LoadedModel, text_ids: list[int], model_type: str | None
) -> None:
    """A piece that nothing was drawn from had the logits of all its tokens."""
    model = loaded if model_type is None else loaded_tiny(model_type)
    engine = engines("turbo4" if model_type is None else "f32", model=model, prefix_cache=False, prefill_chunk=50)
    prompt = tuple(text_ids[:160] if model_type is None else range(3, 90))
    rows: list[int] = []
    head = model.model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[-2]))
    try:
        answers(engine, [GenerationRequest(prompt, 3, GREEDY)])
        assert rows and set(rows) == {1}
        scored = replace(GREEDY, logprobs=0)
        answers(engine, [GenerationRequest(prompt, 1, scored, score_prompt=True)])
        assert sum(rows) >= len(prompt)
    finally:
        hook.remove()


def test_cancelled_requests_give_their_pages_back(engines: Any, text_ids: list[int]) -> None:
    engine = engines("turbo4", slots=6)
    randomly = random.Random(3)

    async def one(request: GenerationRequest) -> Finish:
        ticket = engine.submit(request)
        pieces, wanted = 0, randomly.randint(0, 12)
        async for item in ticket:
            if isinstance(item, Finish):
                return item
            pieces += 1
            if pieces >= wanted:
                ticket.cancel()
        raise AssertionError("no Finish")

    async def all_at_once() -> list[Finish]:
        return await asyncio.gather(*[one(request) for request in prompts(text_ids, 20)])

    finishes = asyncio.run(all_at_once())
    assert "cancelled" in {finish.reason for finish in finishes}
    snapshot = engine.snapshot()
    assert (snapshot.pages_used, snapshot.running, snapshot.queued) == (0, 0, 0)
    assert snapshot.pages_free + snapshot.pages_cached == sum(pool.capacity for pool in engine.cache.pools)
    assert snapshot.counters.cancelled == sum(finish.reason == "cancelled" for finish in finishes)


def test_a_seed_gives_the_same_text_whoever_else_runs(engines: Any, text_ids: list[int]) -> None:
    engine = engines("f32", slots=6)
    request = GenerationRequest(tuple(text_ids[:50]), 16, SamplingParams(seed=11))
    ((alone, _, _),) = answers(engine, [request])
    crowd = answers(engine, [*prompts(text_ids, 5), request])
    assert crowd[-1][0] == alone
    others = {answers(engine, [GenerationRequest(request.prompt, 16)])[0][0] for _ in range(3)}
    assert len(others) > 1


def test_stop_strings_logprobs_and_lengths(engines: Any, text_ids: list[int]) -> None:
    engine = engines("f32")
    prompt = tuple(text_ids[:60])
    ((text, pieces, finish),) = answers(engine, [GenerationRequest(prompt, 24, GREEDY)])
    assert (finish.prompt_tokens, finish.completion_tokens, finish.reason) == (60, 24, "length")
    for token in tokens_of(pieces):
        assert token.top[0] == (token.id, pytest.approx(token.top[0][1]), pytest.approx(token.logprob))
    middle = text[len(text) // 2 :][:5]
    ((cut, _, finish),) = answers(engine, [GenerationRequest(prompt, 24, GREEDY, stop=(middle,))])
    assert cut == text[: text.index(middle)]
    assert (finish.reason, finish.stop_string) == ("stop", middle)
    ((nothing, _, finish),) = answers(engine, [GenerationRequest(prompt, 0, GREEDY)])
    assert (nothing, finish.completion_tokens, finish.reason) == ("", 0, "length")
    ((_, _, finish),) = answers(engine, [GenerationRequest(tuple(text_ids[:1020]), 50, GREEDY)])
    assert finish.completion_tokens == 4  # the context is full


def test_the_end_of_text_ends_unless_ignored(engines: Any, text_ids: list[int]) -> None:
    engine = engines("f32")
    end = min(engine.end_tokens)
    forced = SamplingParams(temperature=0, logit_bias={end: 100.0})
    ((text, _, finish),) = answers(engine, [GenerationRequest(tuple(text_ids[:9]), 8, forced)])
    assert (text, finish.reason, finish.completion_tokens) == ("", "stop", 1)
    ((_, _, finish),) = answers(engine, [GenerationRequest(tuple(text_ids[:9]), 8, forced, ignore_eos=True)])
    assert (finish.reason, finish.completion_tokens) == ("length", 8)


def test_what_can_not_run_is_refused(engines: Any, text_ids: list[int]) -> None:
    engine = engines("f32", slots=1, queue=1, own=True)

    async def refusals() -> None:
        with pytest.raises(PromptTooLong) as error:
            engine.submit(GenerationRequest(tuple(text_ids[:1024]), 1))
        assert (error.value.tokens, error.value.allowed) == (1024, 1023)
        for wrong in (
            GenerationRequest((), 1),
            GenerationRequest((10**9,), 1),
            GenerationRequest((5,), -1),
            GenerationRequest((5,), 1, slot=1),
        ):
            with pytest.raises(UserError):
                engine.submit(wrong)
        running = [engine.submit(GenerationRequest(tuple(text_ids[:9]), 200)) for _ in range(2)]
        with pytest.raises(QueueFull) as full:
            for _ in range(3):
                running.append(engine.submit(GenerationRequest(tuple(text_ids[:9]), 200)))
        assert full.value.retry_after >= 1
        for ticket in running:
            ticket.cancel()
        assert {(await collect(ticket))[2].reason for ticket in running} == {"cancelled"}
        await engine.stop()
        with pytest.raises(NotRunning):
            engine.submit(GenerationRequest((5,), 1))

    asyncio.run(refusals())


@pytest.mark.parametrize("complains", [False, True], ids=["a silent model", "a model that stops at nan"])
def test_states_that_can_not_be_stored_hurt_only_their_request(
    engines: Any, loaded: LoadedModel, text_ids: list[int], complains: bool
) -> None:
    engine = engines("turbo4", slots=4)
    failed = engine.snapshot().counters.failed
    poison = 2000

    def poisoned(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.where((arguments[0] == poison)[..., None], torch.nan, output)

    def stops(module: Any, arguments: Any) -> None:
        if complains and not arguments[0].isfinite().all():
            raise RuntimeError("nan")

    hook = loaded.model.get_input_embeddings().register_forward_hook(poisoned)
    other = loaded.model.get_output_embeddings().register_forward_pre_hook(stops)
    try:
        good = prompts(text_ids, 3)
        assert all(poison not in request.prompt for request in good)
        results = answers(engine, [*good, GenerationRequest((5, poison, 6), 5, GREEDY)])
    finally:
        hook.remove()
        other.remove()
    assert [finish.reason for _, _, finish in results] == ["length"] * 3 + ["error"]
    for request, (_, pieces, _) in zip(good, results[:3], strict=True):
        check_same(tokens_of(pieces), tokens_of(answers(engine, [request])[0][1]))
    assert "non-finite" in results[-1][2].error and "layer 0" in results[-1][2].error
    snapshot = engine.snapshot()
    assert snapshot.healthy and snapshot.pages_used == 0 and snapshot.counters.failed == failed + 1


def test_a_broken_loop_says_so(engines: Any, text_ids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engines("f32", own=True)
    monkeypatch.setattr("threading.excepthook", lambda *_: None)

    def broken(work: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.cache.runner, "run", broken)
    ((_, _, finish),) = answers(engine, [GenerationRequest(tuple(text_ids[:9]), 5)])
    assert finish.reason == "error" and "out of memory" in finish.error
    snapshot = engine.snapshot()
    assert not snapshot.healthy and "out of memory" in snapshot.why and snapshot.pages_used == 0
    with pytest.raises(NotRunning):
        answers(engine, [GenerationRequest((5,), 1)])


def test_stop_waits_for_what_runs(engines: Any, text_ids: list[int]) -> None:
    engine = engines("f32", own=True)

    async def stopping(grace: float, tokens: int) -> Finish:
        ticket = engine.submit(GenerationRequest(tuple(text_ids[:9]), tokens, GREEDY))
        await asyncio.sleep(0.05)
        begin = time.perf_counter()
        await engine.stop(grace)
        assert time.perf_counter() - begin < grace + 5
        return (await collect(ticket))[2]

    assert asyncio.run(stopping(30, 10)).reason == "length"
    engine = engines("f32", own=True)
    assert asyncio.run(stopping(0.05, 900)).reason == "cancelled"


def test_a_cache_too_small_for_one_request_is_refused(engines: Any) -> None:
    with pytest.raises(UserError, match="give more memory"):
        engines("f32", cache_bytes=2**20)


def test_the_snapshot_tells_what_runs(engines: Any, text_ids: list[int]) -> None:
    engine = engines("edges3", slots=2)

    async def look() -> Any:
        ticket = engine.submit(GenerationRequest(tuple(text_ids[:200]), 40, GREEDY, slot=1))
        async for _ in ticket:
            break
        snapshot = engine.snapshot()
        ticket.cancel()
        await collect(ticket)
        return snapshot

    snapshot = asyncio.run(look())
    slot = snapshot.slots[1]
    assert (snapshot.slots[0].state, slot.state, slot.prompt_tokens) == ("idle", "decode", 200)
    assert slot.pages == -(-200 // PAGE_TOKENS)
    assert [layer.k for layer in snapshot.layers][:4] == ["q8_0", "q8_0", "q8_0", "turbo4"]
    assert snapshot.used_bytes == slot.pages * PAGE_TOKENS * snapshot.bytes_per_token <= snapshot.cache_bytes


def test_an_event_loop_that_closed_hurts_nobody(engines: Any, text_ids: list[int]) -> None:
    """Its command could not be answered, and ended the model's loop for all."""
    engine, gate = engines("f32", own=True), threading.Event()
    run = engine.cache.runner.run
    engine.cache.runner.run = lambda work: (gate.wait(30), run(work))[1]
    done: list[str] = []

    async def leaves() -> None:
        engine.submit(GenerationRequest(tuple(text_ids[:9]), 2, GREEDY))
        await asyncio.sleep(0.1)  # a step runs, which the commands have to wait for
        for name in ("cancelled", "left"):
            waiting = asyncio.ensure_future(engine.between_steps(lambda name=name: done.append(name)))
            await asyncio.sleep(0)
            if name == "cancelled":
                waiting.cancel()

    asyncio.run(leaves())
    gate.set()
    ((_, _, finish),) = answers(engine, [GenerationRequest(tuple(text_ids[:5]), 3, GREEDY)])
    assert finish.reason == "length" and engine.healthy
    assert "cancelled" not in done


def test_what_a_snapshot_reads_is_written_with_its_lock(engines: Any, text_ids: list[int]) -> None:
    """A deque that grew while its tokens a second were counted: RuntimeError, and /metrics was 500."""
    engine = engines("f32", own=True)
    add, held = engine.statistics.add_step, list[bool]()
    engine.statistics.add_step = lambda *numbers: (held.append(engine.loop.lock._is_owned()), add(*numbers))
    answers(engine, [GenerationRequest(tuple(text_ids[:9]), 3, GREEDY)])
    assert held and all(held)


def test_an_answer_that_failed_gets_nothing_more(engines: Any, text_ids: list[int]) -> None:
    """With --deterministic a step has several pieces of a prompt: the last one still drew where an earlier one had failed."""
    engine = engines("f32", own=True, deterministic=True, prefix_cache=False)
    run = engine.cache.runner.run

    def first_fails(work: Any) -> Any:
        outcomes = run(work)
        return [
            UserError("no") if len(work) > 1 and item.start == 0 else o for item, o in zip(work, outcomes, strict=True)
        ]

    engine.cache.runner.run = first_fails
    drawn: list[int] = []
    draw = Answer.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Answer, "draw", lambda answer, logits: (drawn.append(1), draw(answer, logits)))
        ((_, pieces, finish),) = answers(engine, [GenerationRequest(tuple(text_ids[: 2 * PAGE_TOKENS]), 3, GREEDY)])
    assert finish.reason == "error" and finish.error == "no" and not pieces and not drawn
