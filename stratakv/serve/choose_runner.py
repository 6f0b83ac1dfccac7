"""Whether a model's sequences can share a forward call: tried at the start, not guessed from its name.

The question is one of structure: does each token see what it should, and nothing else? Rounding must not answer it. So the
trial stores K and V in f32, multiplies packed matrices exactly, and compares with the model's own forward call, where two
sequences are two rows of a batch.
"""

from __future__ import annotations

import torch

from stratakv.engine.load import LoadedModel
from stratakv.engine.pieces import TOKENS, made_up_tokens, own_logits, same_logits
from stratakv.engine.positions import grows_with_text
from stratakv.pages.allocator import PageAllocator
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.pages.table import BlockTable
from stratakv.profile import Profile, resolve
from stratakv.serve.groups import WindowGroup, window_groups
from stratakv.serve.request import GenerationRequest
from stratakv.serve.runner import BatchedRunner, SeparateRunner
from stratakv.serve.scheduler import Work
from stratakv.serve.sequence import Sequence
from stratakv.weights.exact import exact_products

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
    return SeparateRunner(loaded, profile, why, in_pieces=loaded.reads_in_pieces)


def why_apart(loaded: LoadedModel) -> str | None:
    """Why a model's sequences need forward calls of their own, in words; None where they can share them."""
    states = [layer for layer in loaded.geometry.layers if layer.role == "linear"]
    if states:
        return f"layer {states[0].layer}: {states[0].why}"
    model_type = str(loaded.model.config.model_type)
    if grows_with_text(loaded.model.config):
        return f"{model_type}'s RoPE hangs on how long a text is (dynamic)"
    lossless = resolve("f32", loaded.geometry)
    ids = made_up_tokens(loaded.model)
    with exact_products(loaded.model), torch.inference_mode():
        expected = own_logits(loaded.model, lossless, ids)
        try:
            found = _batched_logits(loaded, lossless, ids)
        except Exception as error:
            return f"{model_type}: {type(error).__name__}: {error}".splitlines()[0]
    if all(same_logits(loaded.model, ours, expected[number, at - TOKENS]) for (number, at), ours in found.items()):
        return None
    return f"{model_type} gives other logits when sequences share a call"


def _batched_logits(loaded: LoadedModel, profile: Profile, ids: torch.Tensor) -> dict[tuple[int, int], torch.Tensor]:
    """Logits by (sequence, position), where the last two positions were computed in company."""
    groups = window_groups(profile)
    pools = [PageAllocator(len(ids)) for _ in groups]
    runner = BatchedRunner(loaded, profile, groups, [pool.capacity for pool in pools])
    sequences = []
    for number, prompt in enumerate(ids.tolist()):
        tables = [BlockTable() for _ in pools]
        for pool, table in zip(pools, tables, strict=True):
            table.hold(pool, range(-(-TOKENS // PAGE_TOKENS)))
        sequences.append(Sequence(number, GenerationRequest(tuple(prompt), 1), prompt, [], tables))
    found = {}
    for step in _STEPS:
        work = [
            Work(sequences[number], start, count, prefill, start + count >= TOKENS - 1)
            for number, start, count, prefill in step
        ]
        for item, outcome in zip(work, runner.run(work), strict=True):
            if isinstance(outcome, Exception):
                raise outcome
            if outcome is not None:
                found[item.sequence.id, item.start + item.count - 1] = outcome.clone()
    return found
