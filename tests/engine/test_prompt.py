"""The first token of a prompt stands there once."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from stratakv import load_model, resolve
from stratakv.cli.main import main
from stratakv.engine.conversation import Conversation
from stratakv.engine.prompt import prompt_ids
from stratakv.serve.api.prompts import Prompter

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def loaded() -> Any:
    return load_model("embedded")


@pytest.fixture
def tokenizer(loaded: Any) -> Any:
    assert loaded.tokenizer("x").input_ids[0] == loaded.tokenizer.bos_token_id
    return loaded.tokenizer


def test_a_second_one_is_left_out_with_a_warning(tokenizer: Any) -> None:
    first = tokenizer.bos_token
    with pytest.warns(RuntimeWarning, match="which the tokenizer adds by itself: one of the two is left out"):
        ids = prompt_ids(tokenizer, f"{first}The night")
    assert ids == tokenizer("The night").input_ids or ids == tokenizer(f"{first}The night").input_ids[1:]
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


def test_others_are_as_the_tokenizer_says(tokenizer: Any) -> None:
    first = tokenizer.bos_token
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text, special in (("The night", True), (f"{first}{first}x", False), (f"{first}x", False), ("", True)):
            assert prompt_ids(tokenizer, text, special=special) == tokenizer(text, add_special_tokens=special).input_ids


def test_the_server_s_prompts_and_not_its_tokenize(tokenizer: Any) -> None:
    prompter = Prompter(tokenizer, 4096, 1024)
    first, id_ = tokenizer.bos_token, tokenizer.bos_token_id
    try:
        with pytest.warns(RuntimeWarning, match="one of the two"):
            assert list(prompter.prompt(f"{first}The night")).count(id_) == 1
        with pytest.warns(RuntimeWarning, match="one of the two"):
            assert list(prompter.prompt([f"{first}The night", 5])).count(id_) == 1
        assert prompter.encode(f"{first}The night").count(id_) == 2
        prompter.own_template = "{{ bos_token }}{{ messages[0]['content'] }}"
        assert list(prompter.chat(MESSAGES)).count(id_) == 1
        prompter.own_template = None
        assert list(prompter.chat(MESSAGES)).count(id_) == 1
    finally:
        prompter.close()


def test_conversations(loaded: Any, monkeypatch: Any) -> None:
    conversation = Conversation(loaded, resolve("f16", loaded.geometry), messages=list(MESSAGES))
    first = loaded.tokenizer.bos_token_id
    assert conversation.prompt_ids().count(first) == 1
    template = "{{ bos_token }}{{ messages[0]['content'] }}"
    monkeypatch.setattr(loaded.tokenizer, "chat_template", template)
    assert conversation.prompt_ids().count(first) == 1


def test_generate_says_it(loaded: Any, monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    monkeypatch.setattr("stratakv.engine.load.load_model", lambda source, dtype, device: loaded)
    text = f"{loaded.tokenizer.bos_token}The night"
    with pytest.warns(RuntimeWarning, match="the prompt begins with"):
        assert main(["generate", "-m", "embedded", "-p", text, "-n", "1", "--temp", "0"]) == 0
    err = capsys.readouterr().err
    expected = len(loaded.tokenizer("The night", add_special_tokens=False).input_ids) + 1
    assert f"[prompt {expected} tokens" in err
