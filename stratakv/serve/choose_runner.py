"""Whether a model's sequences can share a forward call: tried at the start, not guessed from its name."""

from __future__ import annotations

import torch

from stratakv.engine.load import LoadedModel
from stratakv.profile import Profile
from stratakv.serve.groups import BlockTable, WindowGroup
from stratakv.serve.pool import PagePool
from stratakv.serve.request import GenerationRequest
from stratakv.serve.runner import BatchedRunner, Runner, SeparateRunner
from stratakv.serve.scheduler import Work
from stratakv.serve.sequence import Sequence

# Between the two ways lies rounding, magnified by codes that flip; wrong attention is off by as much as the logits themselves
_TOLERANCE = 0.1
_LENGTHS = (5, 12)


def choose_runner(
    loaded: LoadedModel, profile: Profile, groups: list[WindowGroup], pools: list[PagePool]
) -> BatchedRunner | SeparateRunner:
    """The batched runner if it gives the logits of the other one on a few short made-up sequences, else the other one."""
    states = [layer for layer in loaded.geometry.layers if layer.role == "linear"]
    if states:
        return SeparateRunner(loaded, profile, f"layer {states[0].layer}: {states[0].why}")
    separate = SeparateRunner(loaded, profile, "")
    batched = BatchedRunner(loaded, profile, groups, [pool.capacity for pool in pools])
    expected = _probe(separate, loaded, pools)
    try:
        found = _probe(batched, loaded, pools)
    except Exception as error:
        why = f"{loaded.model.config.model_type}: {type(error).__name__}: {error}"
        return SeparateRunner(loaded, profile, why.splitlines()[0])
    for ours, theirs in zip(found, expected, strict=True):
        spread = (theirs - theirs.mean()).norm()
        if not (ours - theirs).norm() <= _TOLERANCE * spread:
            return SeparateRunner(
                loaded, profile, f"{loaded.model.config.model_type} gives other logits when sequences share a call"
            )
    return batched


def _probe(runner: Runner, loaded: LoadedModel, pools: list[PagePool]) -> list[torch.Tensor]:
    """Logits of prompts and of one token after each, all sequences in a step."""
    vocabulary = int(loaded.model.config.get_text_config(decoder=True).vocab_size)
    generator = torch.Generator().manual_seed(0)
    sequences = []
    for number, length in enumerate(_LENGTHS):
        prompt = tuple(torch.randint(min(3, vocabulary - 1), vocabulary, (length,), generator=generator).tolist())
        tables = [BlockTable() for _ in pools]
        sequences.append(Sequence(number, GenerationRequest(prompt, 1), [*prompt, prompt[0]], [], tables))
    logits: list[torch.Tensor] = []
    try:
        for sequence in sequences:
            for pool, table in zip(pools, sequence.tables, strict=True):
                table.extend(pool, len(sequence.tokens))
        for prefill in (True, False):
            work = [
                Work(s, 0 if prefill else s.prompt_tokens, s.prompt_tokens if prefill else 1, prefill, True)
                for s in sequences
            ]
            for outcome in runner.run(work):
                if isinstance(outcome, Exception):
                    raise outcome
                assert outcome is not None
                logits.append(outcome)
    finally:
        for sequence in sequences:
            runner.forget(sequence)
            for pool, table in zip(pools, sequence.tables, strict=True):
                table.release(pool)
    return logits
