"""Log-likelihoods: transformers' own numbers, whatever is shared and whatever is read at once."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

import pytest
import torch

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed: make lm-eval")

from tiny_models import loaded_tiny, tiny_model

from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.lm_eval.reading import Reader
from stratakv.lm_eval.rows import batches, rows_of
from stratakv.lm_eval.scoring import score
from stratakv.measure.divergence import negative_log_likelihood, predictions
from stratakv.measure.forward import context_logits
from stratakv.profile import resolve

Pairs = list[tuple[list[int], list[int]]]
# full, sliding, chunked, hybrid layers, and a model that doesn't read prompts in pieces
KINDS = ["llama", "gemma3_text", "llama4_text", "deepseek_v3", "qwen3_next", "jamba"]


def questions(*lengths: int, seed: int = 0, choices: int = 3, examples: int = 20) -> Pairs:
    """Contexts of these lengths after the same examples, each with continuations of one to four tokens."""
    draw = random.Random(seed)
    shared = [draw.randrange(3, 97) for _ in range(examples)]
    pairs = []
    for length in lengths:
        context = [*shared, *(draw.randrange(3, 97) for _ in range(length))]
        pairs += [
            (context, [draw.randrange(3, 97) for _ in range(1 + (choice + length) % 4)]) for choice in range(choices)
        ]
    draw.shuffle(pairs)
    return pairs


def dense(model_type: str, pairs: Pairs) -> list[tuple[float, bool]]:
    """By transformers alone: each pair by itself, in one call, without a cache."""
    model = tiny_model(model_type)
    found = []
    for context, continuation in pairs:
        ids = torch.tensor([[*context, *continuation]])
        with torch.inference_mode():
            logits = model(ids, use_cache=False).logits[0, len(context) - 1 : -1].double()
        targets = torch.tensor(continuation)
        nats = logits.log_softmax(-1).gather(-1, targets[:, None]).sum()
        found.append((float(nats), bool((logits.argmax(-1) == targets).all())))
    return found


@functools.cache
def known(model_type: str) -> tuple[Pairs, list[tuple[float, bool]]]:
    """Questions and their `dense` numbers, which several tests compare with."""
    pairs = questions(2, 9, 10, 30)
    return pairs, dense(model_type, pairs)


def check(ours: Sequence[tuple[float, bool]], theirs: Sequence[tuple[float, bool]], within: float) -> None:
    assert [nats for nats, _ in ours] == pytest.approx([nats for nats, _ in theirs], abs=within)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("model_type", KINDS)
def test_a_lossless_cache_gives_transformers_numbers(model_type: str, batch_size: int) -> None:
    loaded, (pairs, theirs) = loaded_tiny(model_type), known(model_type)
    ours = score(loaded, resolve("f32", loaded.geometry), pairs, longest=500, batch_size=batch_size)
    check(ours, theirs, 1e-4)


def test_an_f16_cache_is_as_near_as_f16_is() -> None:
    loaded, (pairs, theirs) = loaded_tiny("llama"), known("llama")
    ours = score(loaded, resolve("f16", loaded.geometry), pairs, longest=500, batch_size=2)
    check(ours, theirs, 0.02)
    assert ours != score(loaded, resolve("f32", loaded.geometry), pairs, longest=500, batch_size=2)


@pytest.mark.parametrize("profile", ["turbo4", "tcq3; recent: 1 page turbo8; first: 1 page turbo8"])
def test_with_packed_weights_nothing_depends_on_batches(profile: str, loaded: LoadedModel) -> None:
    packed, pairs = resolve(profile, loaded.geometry), questions(3, 125, 240, choices=2, examples=140)
    one, many = (score(loaded, packed, pairs, longest=1000, batch_size=size) for size in (1, 4))
    assert one == many == [score(loaded, packed, [pair], longest=1000, batch_size=1)[0] for pair in pairs]


def test_greedy_text_is_known() -> None:
    loaded = loaded_tiny("llama")
    context = [5, 6, 7]
    with torch.inference_mode():
        best = int(tiny_model("llama")(torch.tensor([context])).logits[0, -1].argmax())
    pairs = [(context, [best]), (context, [best + 1]), (context, [best, 3, 4])]
    found = score(loaded, resolve("f32", loaded.geometry), pairs, longest=500, batch_size=4)
    assert [greedy for _, greedy in found][:2] == [True, False]
    check(found, dense("llama", pairs), 1e-4)


@pytest.mark.parametrize("profile", ["turbo4", "q4_0_rot/turbo3", "tcq4"])
def test_packed_numbers_are_those_of_compare(profile: str) -> None:
    """A text of its own, in pieces of 512: both read the same tokens in the same calls."""
    loaded = loaded_tiny("llama", max_position_embeddings=2048)
    packed = resolve(profile, loaded.geometry)
    ids = torch.randint(3, 97, (1300,), generator=torch.Generator().manual_seed(3))
    logits = context_logits(loaded, packed, ids, 512, first=799).logits
    expected = -float(negative_log_likelihood(predictions(logits), ids[800:]).sum())
    ((ours, _),) = score(loaded, packed, [(ids[:800].tolist(), ids[800:].tolist())], longest=2000, batch_size=1)
    assert ours == pytest.approx(expected, abs=1e-6 * abs(expected))


@pytest.mark.parametrize(
    ("model_type", "profile"),
    [
        ("llama", "turbo4"),
        ("llama", "turbo2; recent: 1 page turbo8"),
        ("llama", "turbo2; recent: 1 page turbo8; first: 1 page turbo8"),
        ("gemma3_text", "turbo3"),
    ],
)
def test_what_others_have_read_before_changes_nothing(model_type: str, profile: str) -> None:
    """Contexts that share pages, part within them, and reach past spans and windows."""
    loaded = loaded_tiny(model_type, max_position_embeddings=2048)
    packed = resolve(profile, loaded.geometry)
    pairs = questions(3, 125, 240, 400, examples=140)
    together = score(loaded, packed, pairs, longest=1000, batch_size=1)
    alone = [score(loaded, packed, [pair], longest=1000, batch_size=1)[0] for pair in pairs]
    check(together, alone, 1e-3)
    check(score(loaded, packed, pairs, longest=1000, batch_size=3), alone, 1e-3)


def test_a_common_beginning_is_computed_once() -> None:
    loaded = loaded_tiny("llama")
    pairs = questions(30, 40, 50, choices=4, examples=100)
    profile = resolve("turbo4", loaded.geometry)
    alone = sum(len(context) + len(continuation) - 1 for context, continuation in pairs)
    for batch_size in (1, 4):
        reader = Reader(loaded, profile)
        for batch in batches(rows_of(pairs, 500), batch_size):
            assert sum(1 for _ in reader.read(batch)) >= 1
        assert reader.computed < 100 + 30 + 40 + 50 + 3 * 4 * 4 + 3 * 4 * 9
        assert reader.computed < alone / 4


def test_contexts_longer_than_the_model_lose_their_beginning() -> None:
    loaded, (pair,) = loaded_tiny("llama"), questions(60, choices=1)
    cut = (pair[0][-(20 + 1 - len(pair[1])) :], pair[1])
    profile = resolve("f32", loaded.geometry)
    ours = score(loaded, profile, [pair], longest=20, batch_size=1)
    check(ours, dense("llama", [cut]), 1e-4)


def test_a_continuation_longer_than_the_model_is_refused() -> None:
    loaded = loaded_tiny("llama")
    with pytest.raises(UserError, match="21 tokens.*at most 20"):
        score(loaded, resolve("f16", loaded.geometry), [([3], [4] * 21)], longest=20, batch_size=1)


def test_nothing_to_say_takes_no_nats() -> None:
    loaded = loaded_tiny("llama")
    assert score(loaded, resolve("f16", loaded.geometry), [([3], [])], longest=20, batch_size=1) == [(0.0, True)]


def test_a_broken_prediction_is_no_number() -> None:
    loaded = loaded_tiny("llama")
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight[5] = float("nan")
    with pytest.raises(UserError, match="profile f16.*finite"):
        score(loaded, resolve("f16", loaded.geometry), [([3, 4], [5])], longest=20, batch_size=1)
