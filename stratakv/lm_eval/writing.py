"""Answers to prompts, many at once over the pages of one cache, each on its own: no padding, and a common beginning read once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from stratakv.engine.load import LoadedModel, free_memory
from stratakv.errors import UserError
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.profile import Profile
from stratakv.serve.engine import Engine
from stratakv.serve.groups import reserve, window_groups
from stratakv.serve.request import GenerationRequest, Limits
from stratakv.serve.samplers import SamplingParams
from stratakv.serve.ticket import collect

_CHUNK = 512
_SHARE = 0.5  # of the memory that is free, for pages
_DRAWN = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
# Options of transformers that change nothing here
_NO_CHANGE: Mapping[str, Any] = {"num_beams": 1, "use_cache": True, "early_stopping": False}


@dataclass(frozen=True)
class Prompt:
    """What to go on from.

    ids: of its tokens. new: tokens at most. stop: texts before which the answer ends. sampling: without its seed. shown: special
    tokens among `stop`. think_end: what the answer begins behind, where it is there.
    """

    ids: tuple[int, ...]
    new: int
    stop: tuple[str, ...] = ()
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0.0))
    shown: Mapping[int, str] = field(default_factory=dict)
    think_end: str | None = None


def prompt_of(
    ids: Sequence[int],
    gen_kwargs: dict[str, Any],
    tokenizer: Any,
    *,
    longest: int,
    most: int,
    think_end: str | None = None,
) -> Prompt:
    """A prompt as a task's generation_kwargs want it; one too long loses its beginning.

    longest: tokens of prompt and answer. most: of the answer, where the task doesn't say. UserError for what isn't known.
    """
    options: dict[str, Any] = dict(normalize_gen_kwargs(gen_kwargs, most))
    new, stop, drawn = (options.pop(name) for name in ("max_gen_toks", "until", "do_sample"))
    room = longest - new
    if new < 0 or room < 1:
        raise UserError(
            f"max_gen_toks {new}: the model reads {longest} tokens, prompt and answer: give less, or max_length"
        )
    sampling: dict[str, Any] = {"temperature": 0.0}
    given = {ours: options.pop(theirs) for theirs, ours in _DRAWN.items() if theirs in options}
    if drawn:  # transformers' meaning: what isn't said is off
        sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **given}
    if (penalty := options.pop("repetition_penalty", 1.0)) != 1.0:
        sampling |= {"repeat_penalty": penalty, "repeat_last_n": -1}
    unknown = {name: value for name, value in options.items() if _NO_CHANGE.get(name, ()) != value}
    if unknown:
        known = ", ".join(["until", "max_gen_toks", "do_sample", *_DRAWN, "repetition_penalty"])
        named = ", ".join(f"{name}: {value}" for name, value in unknown.items())
        raise UserError(f"generation_kwargs {named}: not known here; {known} are")
    stop = tuple(text for text in stop if text)
    special = {text: tokenizer.convert_tokens_to_ids(text) for text in stop if text in tokenizer.all_special_tokens}
    shown = {id_: text for text, id_ in special.items()}
    return Prompt(tuple(ids[-room:]), new, stop, SamplingParams(**sampling), shown, think_end)


def write(
    loaded: LoadedModel,
    profile: Profile,
    prompts: Sequence[Prompt],
    *,
    slots: int,
    done: Callable[[int, str], None] = lambda index, text: None,
) -> list[str]:
    """The prompts' answers. slots: how many are written at once. done: called with each one's index and answer, in another order.

    An answer hangs on its prompt alone, not on its company; drawn ones on torch's seed and their place too. UserError where the
    memory is too small for one of them.
    """
    if not prompts:
        return []
    with ThreadPoolExecutor(1) as thread:  # an event loop may run in this one, a notebook's
        return thread.submit(lambda: asyncio.run(_write(loaded, profile, prompts, slots, done))).result()


async def _write(
    loaded: LoadedModel, profile: Profile, prompts: Sequence[Prompt], slots: int, done: Callable[[int, str], None]
) -> list[str]:
    slots = min(slots, len(prompts))
    context = max(len(prompt.ids) + prompt.new for prompt in prompts)
    limits = Limits(
        slots, context, _cache_bytes(profile, slots, context), _CHUNK, queue=len(prompts), deterministic=True
    )
    engine = Engine(loaded, profile, limits)
    answers = [""] * len(prompts)

    async def answer(index: int) -> None:
        answers[index] = await _answer(engine, loaded.tokenizer, prompts[index], index)
        done(index, answers[index])

    engine.start()
    try:
        # those with the same beginning one after the other: its pages are still there
        order = sorted(range(len(prompts)), key=lambda index: prompts[index].ids)
        await asyncio.gather(*[answer(index) for index in order])
    finally:
        await engine.stop()
    return answers


async def _answer(engine: Engine, tokenizer: Any, prompt: Prompt, index: int) -> str:
    sampling = prompt.sampling
    if sampling.temperature:
        sampling = SamplingParams(**{**vars(sampling), "seed": (torch.initial_seed() + index) % 2**63})
    request = GenerationRequest(prompt.ids, prompt.new, sampling, prompt.stop, shown=prompt.shown)
    _, pieces, finish = await collect(engine.submit(request))
    if finish.error is not None:
        raise UserError(f"prompt {index}: {finish.error}")
    ids = [token.id for piece in pieces for token in piece.tokens]
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return postprocess_generated_text(text, list(prompt.stop), prompt.think_end)


def _cache_bytes(profile: Profile, slots: int, context: int) -> int:
    """For all slots, and one context more of beginnings to be found again, as far as there is memory."""
    groups, pages = window_groups(profile), -(-context // PAGE_TOKENS)
    counts = reserve(groups, (slots + 1) * pages, slots + 1, context, _CHUNK)
    wanted = sum(count * group.page_bytes for count, group in zip(counts, groups, strict=True))
    return min(wanted, int(_SHARE * free_memory()))
