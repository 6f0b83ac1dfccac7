"""Loading: the embedded model, a GGUF of somebody else, directories, and everything that can be wrong with them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
import transformers

from stratakv import UserError, load_model
from stratakv.assets import embedded_model
from stratakv.engine import load
from stratakv.engine.describe import describe_model

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the models of ../shared are not at hand")


def test_embedded_model_is_described_without_its_weights() -> None:
    description = describe_model("embedded")
    assert len(description.geometry.kv_layers) == 12
    assert {layer.head_dim for layer in description.geometry.layers} == {(128, 128)}
    assert description.geometry.context == 4096
    assert description.values == pytest.approx(7.87e6, rel=0.01)
    assert description.fingerprint == describe_model(embedded_model()).fingerprint


@needs_shared
def test_stories_loads_in_spite_of_its_pad_id() -> None:
    loaded = load_model(SHARED / "models" / "stories260Ktok512.gguf")
    assert any("pad_token_id 4294967295" in warning for warning in loaded.warnings)
    ids = loaded.tokenizer("Once upon a time", return_tensors="pt").input_ids
    out = loaded.model.generate(ids, max_new_tokens=12, do_sample=False)
    assert loaded.tokenizer.decode(out[0], skip_special_tokens=True).startswith("Once upon a time, there was a")


@needs_shared
def test_directory_and_embedded_gguf_are_the_same_model() -> None:
    directory, embedded = load_model(SHARED / "models" / "strata-8m"), load_model("embedded")
    assert directory.geometry.kv_layers == embedded.geometry.kv_layers
    text = "The castle stood upon the edge of a terrible precipice.\n\n 12,345 coöperate  tabs\tand so on"
    ids, again = (
        x.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids for x in (directory, embedded)
    )
    assert ids.tolist() == again.tolist()
    with torch.no_grad():
        a, b = (x.model(ids).logits.log_softmax(-1) for x in (directory, embedded))
    assert float((a.exp() * (a - b)).sum(-1).mean()) < 2e-3  # q8_0 weights


def test_no_token_lies_beyond_the_embedding() -> None:
    loaded = load_model("embedded")
    ids = loaded.tokenizer("the end<|endoftext|> and <|eos|>").input_ids
    assert max(ids) < loaded.model.config.vocab_size == len(loaded.tokenizer)
    assert loaded.tokenizer.decode(ids, skip_special_tokens=True) == "the end<|endoftext|> and "


@needs_shared
@pytest.mark.parametrize("keep", [3, 100, 30_000, 1_000_000])
def test_truncated_gguf(tmp_path: Path, keep: int) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes((SHARED / "models" / "stories260Ktok512.gguf").read_bytes()[:keep])
    with pytest.raises(UserError, match=r"short\.gguf (is truncated|can't be read as GGUF|is not a GGUF)"):
        describe_model(short)


def test_foreign_files_and_missing_ones(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    (tmp_path / "b.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60))
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(json.dumps({"model_type": "no-such-architecture"}))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    cases = {
        "a.gguf": "begins with b'PK",
        "b.gguf": "truncated or damaged",
        "empty": "has no config.json",
        "odd": "can't be read by transformers",
        "broken": "can't be read by transformers",
        "none.gguf": "no model at",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message):
            describe_model(tmp_path / name)


def test_a_hub_name_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="neither cached nor can it be downloaded"):
        describe_model("someone/some-model")


def test_directory_with_truncated_weights(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=32).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no \*.safetensors"):
        describe_model(tmp_path)
    header = json.dumps({"w": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(10))
    with pytest.raises(UserError, match="is truncated"):
        describe_model(tmp_path)


def _weights(path: Path, names: list[str]) -> None:
    shapes = {
        name: {"dtype": "F32", "shape": [4, 4], "data_offsets": [64 * i, 64 * i + 64]} for i, name in enumerate(names)
    }
    header = json.dumps(shapes).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64 * len(names)))


def test_weights_in_several_files(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=32).save_pretrained(tmp_path)
    _weights(tmp_path / "model-1.safetensors", ["a", "b"])
    _weights(tmp_path / "model-2.safetensors", ["c"])
    _weights(
        tmp_path / "consolidated.safetensors", ["x", "y", "z"]
    )  # the same weights once more, as Mistral ships them
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "c": "model-2.safetensors"}}))
    assert describe_model(tmp_path).values == 3 * 16
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of its 2 weight files, model-2\.safetensors first"):
        describe_model(tmp_path)
    index.write_text("{")
    with pytest.raises(UserError, match=r"index\.json can't be read"):
        describe_model(tmp_path)


def test_a_directory_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaConfig

    (tmp_path / "here").mkdir()
    LlamaConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=32).save_pretrained(
        tmp_path / "here"
    )
    _weights(tmp_path / "here" / "model.safetensors", ["a"])
    monkeypatch.chdir(tmp_path / "here")
    assert [describe_model(source).name for source in (".", "../here/", tmp_path / "here")] == ["here"] * 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("T5Config", "no causal language model"),
        ("BertConfig", "no causal language model"),
        ("WhisperConfig", "no causal language model"),
        ("CLIPConfig", "no causal language model"),
        ("ViTConfig", "no causal language model"),
        ("RwkvConfig", "no K and V cache"),
        ("MambaConfig", "no K and V cache"),
        ("GPTNeoXConfig", None),
        ("LlavaConfig", None),
        ("Gemma3Config", None),
    ],
)
def test_models_of_other_kinds_are_refused(config: str, message: str | None, tmp_path: Path) -> None:
    made = getattr(transformers, config)()
    made.architectures = {"BertConfig": ["BertForMaskedLM"], "GPTNeoXConfig": ["GPTNeoXForCausalLM"]}.get(config)
    made.save_pretrained(tmp_path)
    _weights(tmp_path / "model.safetensors", ["a"])
    if message is None:
        assert describe_model(tmp_path).geometry.kv_layers
        return
    with pytest.raises(UserError, match=f"is of type {made.model_type}, .*{message}"):
        describe_model(tmp_path)


def test_too_large_a_model_is_refused_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "free_memory", lambda: 20 * 2**20)
    with pytest.raises(UserError, match=r"needs 0\.03 GiB for its weights.* 0\.02 GiB are free"):
        load_model("embedded", packed=False)
    monkeypatch.setattr(load, "free_memory", lambda: 5 * 2**20)
    with pytest.raises(UserError, match=r"GiB for its weights.* 0\.00 GiB are free"):
        load_model("embedded")


@pytest.mark.parametrize("name", ["~nobody-of-this-name/model", "x" * 5000, "a/" * 3000])
def test_names_that_no_file_has(name: str) -> None:
    with pytest.raises(UserError, match="no model at"):
        describe_model(name)


def test_files_that_a_container_has_read_are_free_memory(tmp_path: Path) -> None:
    """A model file's own pages counted against it: the second start was told to close other programs."""
    for name, text in (("max", "1000000\n"), ("current", "900000\n"), ("stat", "anon 300000\ninactive_file 550000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert load.free_memory(tmp_path) == 650_000
    (tmp_path / "memory.stat").unlink()
    assert load.free_memory(tmp_path) == 100_000
    (tmp_path / "memory.max").write_text("max\n")
    assert load.free_memory(tmp_path) > 1_000_000
