"""A profile as the ranks get it: plain data, bytes of each layer and side, and what a rank of its own shape refuses."""

from __future__ import annotations

import json

import pytest
from geometries import plain

from stratakv.errors import UserError
from stratakv.profile import Profile, resolve
from stratakv.vllm_plugin.assignment import Assignment, Built

MIXED = "first1: q8_0/turbo4; rest: turbo3"


def assignment(text: str = MIXED) -> Assignment:
    return Assignment.of(resolve(text, plain(8, kv_heads=4, q_heads=8)))


def found(layers: range, kv_heads: int) -> dict[int, Built]:
    return {layer: Built((128, 128), kv_heads) for layer in layers}


def test_it_travels_as_json() -> None:
    assert Assignment.from_json(json.loads(json.dumps(assignment().to_json()))) == assignment()


def test_a_layer_s_blocks_have_the_bytes_of_its_types() -> None:
    assert [assignment().vector_bytes(layer, (128, 128)) for layer in range(3)] == [136 + 66, 50 + 50, 50 + 50]
    assert assignment().vector_bytes(0, (192, 128)) == 204 + 66


def test_a_layer_without_types_is_refused() -> None:
    with pytest.raises(
        UserError, match="layer 8 nothing, but vLLM caches its K and V: it has types for the layers 0-7"
    ):
        assignment().storage(8)


def test_spans_are_refused_with_the_reason() -> None:
    with pytest.raises(
        UserError, match=r"vLLM writes a token once.*recent: 1 page turbo8.*give a profile without spans"
    ):
        assignment("turbo3; recent: 1 page turbo8")


@pytest.mark.parametrize(("ranks", "heads"), [(1, 4), (2, 2), (4, 1), (8, 1)])
def test_a_tensor_parallel_rank_has_its_share_of_the_heads(ranks: int, heads: int) -> None:
    profile = assignment().on_rank("rank 0", range(8), ranks, found(range(8), heads))
    assert profile.bytes_per_token == heads * (136 + 66 + 7 * 100)


def test_a_pipeline_stage_has_its_own_layers() -> None:
    whole: Profile = resolve(MIXED, plain(8, kv_heads=4, q_heads=8))
    stages = [assignment().on_rank("rank", stage, 1, found(stage, 4)) for stage in (range(3), range(3, 8))]
    assert [stage.pairs for stage in stages] == [whole.pairs[:3], whole.pairs[3:]]
    assert sum(stage.bytes_per_token for stage in stages) == whole.bytes_per_token


def test_a_stage_with_other_layers_is_refused() -> None:
    with pytest.raises(UserError, match="types for layers 0-3 of this pipeline stage, vLLM built layers 0-2"):
        assignment().on_rank("rank 1", range(4), 1, found(range(3), 4))
    with pytest.raises(UserError, match="vLLM built no layer with a cache"):
        assignment().on_rank("rank 1", range(4), 1, {})


def test_a_stage_of_another_shape_is_refused() -> None:
    with pytest.raises(UserError, match=r"for 2 kv heads of \(128, 128\) in layer 0, vLLM has 4 of \(128, 128\)"):
        assignment().on_rank("rank 0", range(8), 2, found(range(8), 4))
