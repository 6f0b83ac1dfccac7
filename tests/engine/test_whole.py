"""Files that aren't whole are refused with the names of what is missing, packed and unpacked; parts of one model are one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import rewrite, split
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model

from stratakv import UserError, load_model
from stratakv.assets import embedded_model
from stratakv.cli.main import main
from stratakv.engine.describe import describe_model
from stratakv.engine.load import load_weights
from stratakv.weights import ggml
from stratakv.weights.gguf_split import read_gguf_header

PACKED = pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
IDS = torch.tensor([[5, 99, 1203, 7, 812, 4000, 33, 21]])


@pytest.fixture(scope="module", autouse=True)
def _packed_is_packed() -> None:
    if ggml.unavailable():
        pytest.skip(f"packed weights need ggml: {ggml.unavailable()}")


def without(*names: str) -> Any:
    return {"keep": lambda name: not any(part in name for part in names)}


def cut(wanted: str) -> Any:
    return {"change": lambda name, data: np.ascontiguousarray(data[:64]) if name == wanted else data}


FAULTS = {
    "a matrix": (without("blk.3.attn_q."), "1 weights are missing .model.layers.3.self_attn.q_proj.weight"),
    "a layer": (without("blk.4."), "9 weights are missing .*and 6 more"),
    "a norm": (without("output_norm"), "1 weights are missing .model.norm.weight"),
    "the embedding": (without("token_embd"), "weights are missing .*model.embed_tokens.weight"),
    "rows": (
        cut("blk.0.ffn_up.weight"),
        "another shape than the model's .*mlp.up_proj.weight is 64 x 192, not 512 x 192",
    ),
    "a norm's values": (cut("blk.0.attn_norm.weight"), "another shape .*0.input_layernorm.weight is 64, not 192"),
}


@pytest.mark.parametrize(
    ("fault", "packed"), [*((fault, False) for fault in FAULTS), ("a layer", True), ("rows", True), ("a norm", True)]
)
def test_a_gguf_file_without_some_weights(fault: str, packed: bool, tmp_path: Path) -> None:
    how, message = FAULTS[fault]
    path = rewrite(embedded_model(), tmp_path / "m.gguf", **how)
    with pytest.raises(UserError, match=rf"m\.gguf is not whole: .*{message}") as caught:
        load_weights(describe_model(path), packed=packed)
    assert "\n" not in str(caught.value)


def test_the_command_line_says_it_in_one_line(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("stratakv.cli.patience.DELAY_SECONDS", 600)
    path = rewrite(embedded_model(), tmp_path / "m.gguf", **without("blk.3."))
    assert main(["generate", "-m", str(path), "-p", "x"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "weights are missing" in err


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    return tmp_path


def test_sharded_safetensors_are_read_whole(sharded: Path) -> None:
    weights = load_weights(describe_model(sharded))
    expected = tiny_model("llama").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in weights.model.state_dict().items())


def test_a_tied_head_is_not_missing(tmp_path: Path) -> None:
    model = tiny_model("gemma2")
    assert model.config.tie_word_embeddings
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model = load_weights(describe_model(tmp_path)).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("model_type", ["llama", "granite", "gpt_neox", "qwen3_moe"])
def test_safetensors_without_some_weights(model_type: str, tmp_path: Path) -> None:
    tiny_model(model_type).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    gone = next(name for name in tensors if "layers.2" in name and name.endswith("norm.weight"))
    save_file({name: value for name, value in tensors.items() if name != gone}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"is not whole: 1 weights are missing .{gone}"):
        load_weights(describe_model(tmp_path))


def test_safetensors_of_another_shape_and_an_index_that_promises_more(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    place = json.loads(index.read_text())["weight_map"]
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors = load_file(sharded / place[name])
    save_file({**tensors, name: tensors[name][:5].clone()}, sharded / place[name], metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"another shape than the model's .{name} is 5 x 32, not 16 x 32"):
        load_weights(describe_model(sharded))
    save_file({n: v for n, v in tensors.items() if n != name}, sharded / place[name], metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"1 weights are missing .{name}"):
        load_weights(describe_model(sharded))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return split(embedded_model(), tmp_path_factory.mktemp("parts"), 3)


@pytest.fixture
def own_parts(parts: list[Path], tmp_path: Path) -> list[Path]:
    """Copies that a test may spoil."""
    return [Path(shutil.copyfile(path, tmp_path / path.name)) for path in parts]


@PACKED
def test_a_split_model_is_the_whole_one_from_any_part_s_name(packed: bool, parts: list[Path]) -> None:
    paths, whole = parts, describe_model("embedded")
    for path in paths:
        description = describe_model(path)
        assert description.geometry.layers == whole.geometry.layers and description.fingerprint == whole.fingerprint
    ours, theirs = load_model(paths[1], packed=packed), load_model("embedded", packed=packed)
    assert (ours.packed is not None) == packed
    if ours.packed is not None:
        assert [file.path for file in ours.packed.files] == paths and not ours.packed.unpacked
    assert ours.tokenizer("The night was").input_ids == theirs.tokenizer("The night was").input_ids
    with torch.inference_mode():
        assert torch.equal(ours.model(IDS).logits, theirs.model(IDS).logits)


def test_a_split_model_that_lacks_a_part_names_it(own_parts: list[Path]) -> None:
    paths = own_parts
    paths[1].unlink()
    for path in (paths[0], paths[2]):
        with pytest.raises(UserError, match=r"1 of them is not in .*: model-00002-of-00003\.gguf"):
            describe_model(path)


def test_a_part_of_another_model_or_count_is_refused(own_parts: list[Path], tmp_path: Path) -> None:
    paths = own_parts
    other = tmp_path / "other"
    other.mkdir()
    longer = split(embedded_model(), other, 4)
    shutil.copyfile(longer[1], paths[1])
    with pytest.raises(UserError, match="says that it is part 2 of 4, its name that it is part 2 of 3"):
        describe_model(paths[0])
    shutil.copyfile(paths[2], paths[1])
    with pytest.raises(UserError, match="says that it is part 3 of 3, its name that it is part 2 of 3"):
        describe_model(paths[0])
    shutil.copyfile(embedded_model(), paths[1])
    with pytest.raises(UserError, match="says that it is no part of several"):
        describe_model(paths[0])
    fewer = rewrite(embedded_model(), other / "fewer.gguf", **without("blk.11."))
    shutil.copyfile(split(fewer, other, 3)[1], paths[1])
    with pytest.raises(
        UserError, match=r"is a part of another model than model-00001-of-00003\.gguf: split.tensors.count"
    ):
        describe_model(paths[0])
    renamed = tmp_path / "renamed.gguf"
    paths[0].rename(renamed)
    with pytest.raises(UserError, match="is part 1 of a model in 3 files: name them all"):
        describe_model(renamed)


def test_parts_are_one_header(parts: list[Path]) -> None:
    paths = parts
    header = read_gguf_header(paths[2])
    assert header.paths == tuple(paths) and read_gguf_header(paths[0]) is header
    assert {tensor.path for tensor in header.tensors} == set(paths)


def test_special_tokens_outside_of_the_vocabulary_are_left_out(tmp_path: Path) -> None:
    name = "tokenizer.ggml.padding_token_id"
    path = rewrite(embedded_model(), tmp_path / "m.gguf", fields={name: 2**31 - 1})
    loaded = load_model(path)
    assert any("pad_token_id" in warning for warning in loaded.warnings)
    assert loaded.tokenizer("The night was").input_ids == load_model("embedded").tokenizer("The night was").input_ids


def test_layers_without_end_are_refused_before_they_are_counted(tmp_path: Path) -> None:
    path = rewrite(embedded_model(), tmp_path / "m.gguf", fields={"llama.block_count": 2**31 - 1})
    with pytest.raises(UserError, match="it says that it has 2,147,483,647 layers, and has 110 tensors"):
        describe_model(path)


ODD = {
    "no tokens": ({"tokenizer.ggml.tokens": None}, "has no tokenizer that transformers can read"),
    "no tokenizer at all": ({"tokenizer.ggml.model": None}, "has no tokenizer that transformers can read"),
    "an unknown tokenizer": ({"tokenizer.ggml.model": "rwkv"}, "has no tokenizer that transformers can read: .*'rwkv'"),
    "no merges": ({"tokenizer.ggml.merges": None}, "has no tokenizer that transformers can read"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_tokenizers_are_one_line(case: str, tmp_path: Path) -> None:
    fields, message = ODD[case]
    path = rewrite(embedded_model(), tmp_path / "m.gguf", fields=fields)
    with pytest.raises(UserError, match=rf"m\.gguf {message}") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
