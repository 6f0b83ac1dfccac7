"""Inside vLLM: the tokens that packed pages give, beside stock vLLM's and our own engine's."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from vllm_engines import MIXED, Answer, engine, moved, prompts

from stratakv.engine.load import LoadedModel

pytestmark = pytest.mark.vllm


class Runs(NamedTuple):
    """Of one engine: 16 requests at once, the same again, and some of them alone, without what the cache had kept."""

    answers: list[Answer]
    again: list[Answer]
    alone: list[Answer]


@pytest.fixture(scope="module")
def runs(strata: Path) -> Runs:
    with engine(strata, MIXED) as made:  # a process has one at a time
        answers, again = made.answers(prompts(16)), made.answers(prompts(16))
        made.llm.reset_prefix_cache()
        return Runs(answers, again, [made.answers([prompt])[0] for prompt in prompts(4)])


def tokens(answers: list[Answer]) -> list[list[int]]:
    return [answer.tokens for answer in answers]


@pytest.mark.parametrize(("dtype", "profile"), [("float32", "f32"), ("bfloat16", "bf16")])
def test_a_lossless_profile_gives_stock_vllm_s_tokens(strata: Path, dtype: str, profile: str) -> None:
    with engine(strata, None, dtype=dtype) as stock:
        expected = tokens(stock.answers(prompts(4)))
    with engine(strata, profile, dtype=dtype) as packed:
        assert tokens(packed.answers(prompts(4))) == expected


def test_packed_types_give_our_own_engine_s_greedy_tokens(runs: Runs, own: LoadedModel) -> None:
    assert moved(own, MIXED, runs.answers) == []


def test_the_comparison_sees_other_types(runs: Runs, own: LoadedModel) -> None:
    assert moved(own, "turbo2", runs.answers) != []


@pytest.mark.parametrize("profile", ["turbo4", "tcq4/turbo2", "q4_0_rot"])
def test_so_do_other_types(strata: Path, own: LoadedModel, profile: str) -> None:
    with engine(strata, profile) as packed:
        found = packed.answers(prompts(4))
    assert moved(own, profile, found) == []


def test_prefix_hits_change_nothing(runs: Runs) -> None:
    assert sum(answer.cached for answer in runs.again) >= 128 * 16
    assert tokens(runs.again) == tokens(runs.answers)


def test_requests_alone_get_what_they_get_in_company(runs: Runs) -> None:
    assert sum(answer.cached for answer in runs.alone) == 0
    assert tokens(runs.alone) == tokens(runs.answers[:4])


def test_prompts_in_chunks_give_the_same(strata: Path, runs: Runs) -> None:
    with engine(strata, MIXED, max_num_batched_tokens=256, enable_chunked_prefill=True) as chunked:
        assert tokens(chunked.answers(prompts(16))) == tokens(runs.answers)


def test_preempted_requests_give_the_same(strata: Path, runs: Runs) -> None:
    with engine(strata, MIXED, mib=4) as small:
        found = small.answers(prompts(16), 40)
        assert small.preemptions() > 0
    assert [answer.tokens[:24] for answer in found] == tokens(runs.answers)
