"""transformers gets a file's header from us and makes of it what its own readers make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import transformers.modeling_gguf_pytorch_utils as loader
from real_models import GEMMA3, SMOLLM2, needs_models
from transformers import AutoConfig, AutoTokenizer
from transformers.integrations import gguf as package
from transformers.integrations.gguf import reader

from stratakv.assets import embedded_model
from stratakv.engine.describe import describe_model
from stratakv.engine.load import load_tokenizer
from stratakv.weights.gguf_split import read_gguf_header
from stratakv.weights.hand_over import handed_over

TEXTS = (
    "Once upon a time, there was a castle.",
    "  two  spaces,\ttabs\nand\n\n\nlines   ",
    "12,345.678 + 9 == x_y; def f(a): return a**2  # don't",
    "coöperate naïve Ω≈ç√ 你好，世界 こんにちは 🙂👩‍👩‍👧 \u0000\u200b",
    "<|im_start|>user\nHi<|im_end|>\n<start_of_turn>model<end_of_turn><bos><|endoftext|> </s>",
    "",
    " ",
)
PARTS = ("GGUFReader", "load_gguf_checkpoint", "read_gguf_metadata", "load_gguf_state_dict", "from_file")


def same_as_their_own_way(path: Path) -> None:
    theirs: Any = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    with handed_over(read_gguf_header(path)):
        again: Any = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        ours = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    assert ours.to_dict() == config.to_dict()
    loaded = load_tokenizer(describe_model(path))
    assert type(again) is type(theirs) is type(loaded)
    assert again.get_vocab() == theirs.get_vocab()
    assert again.special_tokens_map == theirs.special_tokens_map and again.chat_template == theirs.chat_template
    for text in TEXTS:
        for special in (True, False):
            expected = theirs(text, add_special_tokens=special).input_ids
            assert again(text, add_special_tokens=special).input_ids == expected
            if max(expected, default=0) < ours.vocab_size:  # we drop what transformers adds behind the vocabulary
                assert loaded(text, add_special_tokens=special).input_ids == expected
                assert loaded.decode(expected) == theirs.decode(expected)


def test_the_embedded_model_s_tokens_are_those_of_transformers_own_way() -> None:
    same_as_their_own_way(embedded_model())


@pytest.mark.real
@pytest.mark.slow
@needs_models
@pytest.mark.parametrize("path", [SMOLLM2, GEMMA3], ids=["smollm2", "gemma3"])
def test_real_tokens_are_those_of_transformers_own_way(path: Path) -> None:
    same_as_their_own_way(path)


def state() -> list[Any]:
    homes = {"GGUFReader": gguf, "load_gguf_checkpoint": loader, "from_file": reader.GgufHeader}
    return [vars(homes.get(name, reader))[name] for name in PARTS] + [package.read_gguf_metadata]


def test_nothing_of_it_stays(tmp_path: Path) -> None:
    before = state()
    header = read_gguf_header(embedded_model())
    with pytest.raises(KeyError), handed_over(header):
        with handed_over(header):
            pass
        assert state() != before
        raise KeyError
    assert state() == before


def test_other_files_are_read_as_ever(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(embedded_model().read_bytes())
    with handed_over(read_gguf_header(embedded_model())):
        assert len(gguf.GGUFReader(other).fields["tokenizer.ggml.tokens"].data) == 4096
        config = AutoConfig.from_pretrained(tmp_path, gguf_file=other.name)
    assert config.vocab_size == 4096


def test_hidden_fields_are_not_there() -> None:
    path, name = embedded_model(), "tokenizer.ggml.eos_token_id"
    with handed_over(read_gguf_header(path), {name}):
        assert name not in reader.read_gguf_metadata(str(path))[0]
        assert name not in gguf.GGUFReader(path).fields
    with handed_over(read_gguf_header(path)):
        assert name in reader.read_gguf_metadata(str(path))[0]


def test_the_map_of_names_is_made_once_for_all_modules() -> None:
    with handed_over(read_gguf_header(embedded_model())):
        first = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3) is first
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 4) is not first
    assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3) is not first
