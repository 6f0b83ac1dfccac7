"""Whether a model's sequences can share a forward call: tried at the start, not guessed from its name.

The question is one of structure: does each token see what it should, and nothing else? Rounding must not answer it. So the
trial stores K and V in f32, multiplies packed matrices exactly, and compares with the model's own forward call, where two
sequences are two rows of a batch.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from stratakv.cache import KVCache
from stratakv.engine.load import LoadedModel
from stratakv.profile import Profile, resolve
from stratakv.serve.groups import BlockTable, WindowGroup, window_groups
from stratakv.serve.pool import PagePool
from stratakv.serve.request import GenerationRequest
from stratakv.serve.runner import BatchedRunner, SeparateRunner
from stratakv.serve.scheduler import Work
from stratakv.serve.sequence import Sequence
from stratakv.weights.exact import exact_products

# Of the logits' spread. What a token sees in error moves them by about as much as they are themselves; beside that there is the
# order of sums, which costs 1e-6 in float32 and a few percent in 16 bits
_TOLERANCE = {torch.float32: 0.01}
_TOLERANCE_16_BITS = 0.1
_TOKENS = 8
# (sequence, first token, tokens, by prefill attention) of each step: two prompts of different lengths, then a single token
# beside a prompt's second piece
_STEPS = ([(0, 0, 7, True), (1, 0, 4, True)], [(0, 7, 1, False), (1, 4, 4, True)])


def choose_runner(
    loaded: LoadedModel, profile: Profile, groups: list[WindowGroup], capacities: list[int]
) -> BatchedRunner | SeparateRunner:
    """The batched runner if it gives the model's own logits for two short made-up sequences, else the other one."""
    why = why_apart(loaded)
    if why is None:
        return BatchedRunner(loaded, profile, groups, capacities)
    return SeparateRunner(loaded, profile, why, in_pieces=reads_in_pieces(loaded))


def why_apart(loaded: LoadedModel) -> str | None:
    """Why a model's sequences need forward calls of their own, in words; None where they can share them."""
    states = [layer for layer in loaded.geometry.layers if layer.role == "linear"]
    if states:
        return f"layer {states[0].layer}: {states[0].why}"
    model_type = str(loaded.model.config.model_type)
    lossless = resolve("f32", loaded.geometry)
    ids = _made_up_tokens(loaded)
    with exact_products(loaded.model), torch.inference_mode():
        expected = _own_logits(loaded, lossless, ids)
        try:
            found = _batched_logits(loaded, lossless, ids)
        except Exception as error:
            return f"{model_type}: {type(error).__name__}: {error}".splitlines()[0]
    if all(_same(loaded, ours, expected[number, at - _TOKENS]) for (number, at), ours in found.items()):
        return None
    return f"{model_type} gives other logits when sequences share a call"


def reads_in_pieces(loaded: LoadedModel) -> bool:
    """Whether a model gives the same logits for a prompt in pieces; transformers' Jamba forgets the state between them."""
    lossless = resolve("f32", loaded.geometry)
    ids = _made_up_tokens(loaded)
    with exact_products(loaded.model), torch.inference_mode():
        whole = _own_logits(loaded, lossless, ids)[:, -1]
        pieces = _own_logits(loaded, lossless, ids, first=_TOKENS // 2)[:, -1]
    return all(_same(loaded, ours, theirs) for ours, theirs in zip(pieces, whole, strict=True))


def _same(loaded: LoadedModel, ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    tolerance = _TOLERANCE.get(loaded.model.dtype, _TOLERANCE_16_BITS)
    return bool((ours - theirs).norm() <= tolerance * (theirs - theirs.mean()).norm())


def _made_up_tokens(loaded: LoadedModel) -> torch.Tensor:
    vocabulary = int(loaded.model.config.get_text_config(decoder=True).vocab_size)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(min(3, vocabulary - 1), vocabulary, (2, _TOKENS), generator=generator)


def _own_logits(loaded: LoadedModel, profile: Profile, ids: torch.Tensor, *, first: int = _TOKENS) -> torch.Tensor:
    """float32 [2, two or more last tokens, vocabulary]: both sequences as rows of a batch, in one call, or the `first` tokens
    in one and the others in the next."""
    model: Any = loaded.model
    options: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = 2
    cache = KVCache(model.config, profile)
    positions = torch.arange(_TOKENS).expand(2, -1)
    for some in (slice(0, first), slice(first, _TOKENS)):
        given, where = (x[:, some].to(model.device) for x in (ids, positions))
        if given.numel():
            out = model(input_ids=given, position_ids=where, past_key_values=cache, use_cache=True, **options)
    logits: torch.Tensor = out.logits
    return logits.float().cpu()


def _batched_logits(loaded: LoadedModel, profile: Profile, ids: torch.Tensor) -> dict[tuple[int, int], torch.Tensor]:
    """Logits by (sequence, position), where the last two positions were computed in company."""
    groups = window_groups(profile)
    pools = [PagePool(len(ids)) for _ in groups]
    runner = BatchedRunner(loaded, profile, groups, [pool.capacity for pool in pools])
    sequences = []
    for number, prompt in enumerate(ids.tolist()):
        tables = [BlockTable() for _ in pools]
        for pool, table in zip(pools, tables, strict=True):
            table.extend(pool, _TOKENS)
        sequences.append(Sequence(number, GenerationRequest(tuple(prompt), 1), prompt, [], tables))
    found = {}
    for step in _STEPS:
        work = [
            Work(sequences[number], start, count, prefill, start + count >= _TOKENS - 1)
            for number, start, count, prefill in step
        ]
        for item, outcome in zip(work, runner.run(work), strict=True):
            if isinstance(outcome, Exception):
                raise outcome
            if outcome is not None:
                found[item.sequence.id, item.start + item.count - 1] = outcome
    return found
