"""Inside vLLM: bytes, the table at a rank's start, and what is refused before one starts."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from vllm_engines import MIXED, engine, moved, prompts

from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.profile import resolve, save_profile
from stratakv.profile.geometry import ModelGeometry

pytestmark = pytest.mark.vllm


def words_of(caplog: pytest.LogCaptureFixture, level: int) -> str:
    name = "vllm.plugins.stratakv"
    return "\n".join(each.getMessage() for each in caplog.records if each.name == name and each.levelno >= level)


@pytest.mark.parametrize("profile", ["f16", "turbo4", MIXED])
def test_as_many_tokens_fit_as_the_bytes_say(strata: Path, own: LoadedModel, profile: str) -> None:
    size = resolve(profile, own.geometry).bytes_per_token
    with engine(strata, profile, mib=64) as packed:
        assert packed.blocks == 64 * 2**20 // (128 * size)


def test_a_rank_logs_what_its_layers_store(strata: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("vllm.plugins.stratakv")
    logger.addHandler(caplog.handler)
    try:
        with engine(strata, MIXED) as packed:
            blocks = packed.blocks
    finally:
        logger.removeHandler(caplog.handler)
    text = words_of(caplog, logging.INFO)
    assert "rank 0 (tensor parallel 1, pipeline parallel 1, layers 0-11)" in text
    assert "3-8    3-8       full  turbo3  turbo3  200 each" in text
    assert "3,624 bytes a token" in text
    assert f"{blocks * 128:,} tokens fit in" in text
    assert "padding" not in text


def test_torch_says_that_it_is_slow_and_gives_the_same_tokens(
    strata: Path, own: LoadedModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a device without kernels of ours."""
    monkeypatch.setenv("STRATAKV_KERNEL", "torch")
    logger = logging.getLogger("vllm.plugins.stratakv")
    logger.addHandler(caplog.handler)
    try:
        with engine(strata, MIXED) as packed:
            found = packed.answers(prompts(2), 8)
    finally:
        logger.removeHandler(caplog.handler)
    assert "12 layers torch, which decodes pages and is slow (STRATAKV_KERNEL=torch)" in words_of(caplog, logging.INFO)
    monkeypatch.delenv("STRATAKV_KERNEL")
    assert moved(own, MIXED, found) == []


def test_states_that_can_t_be_stored_are_an_error_in_the_log(
    strata: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(strata, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.3.self_attn.v_proj.weight"] *= 1e8
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    logger = logging.getLogger("vllm.plugins.stratakv")
    logger.addHandler(caplog.handler)
    try:
        with engine(broken, "turbo4") as packed:
            packed.answers(prompts(1), 4)
    finally:
        logger.removeHandler(caplog.handler)
    assert "layer 3, V" in words_of(caplog, logging.ERROR)
    assert "the answers that are computed from it are worth nothing" in words_of(caplog, logging.ERROR)


def test_nothing_happens_without_a_profile(strata: Path) -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    with engine(strata, None) as stock:
        config = stock.llm.llm_engine.vllm_config
        layers = config.compilation_config.static_forward_context.values()
        assert config.additional_config == {}
        assert {layer.attn_backend for layer in layers} == {CPUAttentionBackend}


def test_the_variable_names_a_profile_too(strata: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATAKV_PROFILE", "mode1@turbo3/turbo3")
    with engine(strata, None) as packed:
        assignment = packed.llm.llm_engine.vllm_config.additional_config["stratakv_assignment"]
    assert [row["k"] for row in assignment["layers"]] == ["q8_0"] * 4 + ["turbo3"] * 4 + ["q8_0"] * 4


def test_a_profile_file(strata: Path, own: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "mixed.profile.json"
    save_profile(resolve(MIXED, own.geometry, fingerprint=own.fingerprint), path)
    with engine(strata, str(path)) as packed:
        assert packed.blocks == 64 * 2**20 // (128 * 3624)


@pytest.mark.parametrize(
    ("profile", "settings", "words"),
    [
        ("turbo9", {}, "unknown profile 'turbo9'"),
        ("q8_0/turbo9", {}, "turbo9"),
        ("first99: q8_0; rest: turbo4", {}, "99"),
        ("turbo4; recent: 2 pages turbo8", {}, "give a profile without spans"),
        ("turbo4", {"block_size": 64}, "--block-size 64"),
        ("turbo4", {"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8"),
        ("nowhere.json", {}, "cannot read the profile nowhere.json"),
    ],
)
def test_what_can_t_be_is_refused_in_one_line(
    strata: Path, profile: str, settings: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError) as found, engine(strata, profile, **settings):
        pass
    assert words in str(found.value) and "\n" not in str(found.value)


def test_a_file_for_another_model_is_refused(strata: Path, own: LoadedModel, tmp_path: Path) -> None:
    fewer = ModelGeometry("another", own.geometry.layers[:8], own.geometry.context)
    path = tmp_path / "another.profile.json"
    save_profile(resolve("turbo4", fewer), path)
    with pytest.raises(UserError, match=r"model.kv_layers is 8 \(another\)"), engine(strata, str(path)):
        pass


def test_ranks_refuse_what_they_were_not_meant_for(own: LoadedModel, strata: Path) -> None:
    """An assignment that was made for other layers than those that vLLM builds, as a stage of another size would."""
    from vllm.engine.arg_utils import EngineArgs

    from stratakv.vllm_plugin.assignment import Assignment, Built
    from stratakv.vllm_plugin.front import ASSIGNMENT

    made = EngineArgs(
        str(strata), enforce_eager=True, additional_config={"stratakv_profile": "turbo4"}
    ).create_engine_config()
    assignment = Assignment.from_json(json.loads(json.dumps(made.additional_config[ASSIGNMENT])))
    found = {layer.layer: Built(layer.head_dim, layer.kv_heads) for layer in own.geometry.kv_layers}
    with pytest.raises(UserError, match=r"layers 0-5 of this pipeline stage, vLLM built layers 0-11"):
        assignment.on_rank("rank 0", range(6), 1, found)
