"""Messages become prompts: the model's template, the plain one, and what a template may refuse."""

from __future__ import annotations

import pytest
from servers import embedded

from stratakv.engine.chat_template import template_problem
from stratakv.serve.api.errors import ApiError
from stratakv.serve.api.prompts import Prompter
from stratakv.serve.request import PromptTooLong

HELLO = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'king' %}{{ raise_exception('no kings') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}{% if tools %}[tools]{{ tools | tojson }}{% endif %}"
    "{% if mood is defined %}[{{ mood }}]{% endif %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def prompter():
    made = Prompter(embedded().tokenizer, 4096, 1024)
    yield made
    made.close()


@pytest.fixture
def templated(prompter, monkeypatch):
    monkeypatch.setattr(prompter._tokenizer, "chat_template", TEMPLATE)  # others use this tokenizer too
    prompter.own_template = TEMPLATE
    return prompter


def test_the_models_own_template(templated):
    assert templated.chat_text(HELLO, (), {"mood": "calm"}) == "[user]Hi[calm][assistant]"
    for name in ("template", "tokenizer"):  # variables like any other
        assert templated.chat_text(HELLO, (), {name: "x", "mood": "calm"}) == "[user]Hi[calm][assistant]"
    assert templated.chat_text(HELLO, [TOOL]).endswith('"name": "look", "parameters": {"type": "object"}}}][assistant]')
    assert templated.chat_stops == ()
    assert templated.chat(HELLO)[0] != 0  # its template says what comes first, no token is added


def test_a_template_without_tools_gets_a_system_message(templated):
    templated.own_template = TEMPLATE.replace("tools", "nothing")
    assert '"name": "look"' in templated.chat_text(HELLO, [TOOL])
    assert templated.chat_text(HELLO, [TOOL]).startswith("[system]")


def test_what_a_template_refuses(templated):
    with pytest.raises(ApiError, match="no kings") as error:
        templated.chat_text([{"role": "king", "content": ""}])
    assert error.value.status == 400 and error.value.param == "messages"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in messages %}\n{{ m.content }}\n{% endfo %}", "line 3: Encountered unknown tag 'endfo'"),
        ("{{ messages | nonsense }}", "line 1: No filter named 'nonsense'"),
    ],
)
def test_a_template_that_does_not_compile_is_found_at_the_start(monkeypatch, template, says):
    monkeypatch.setattr(embedded().tokenizer, "chat_template", template)
    assert template_problem(embedded().tokenizer).startswith(says)
    made = Prompter(embedded().tokenizer, 4096, 1024)
    made.close()
    assert made.own_template is None and made.chat_text(HELLO) == "User: Hi\n\nAssistant:"
    monkeypatch.setattr(embedded().tokenizer, "chat_template", "{{ raise_exception('no') }}")
    assert template_problem(embedded().tokenizer) is None


def test_the_plain_template(prompter):
    assert prompter.chat_text(HELLO) == "User: Hi\n\nAssistant:"
    assert prompter.chat_stops == ("\nUser:",)
    assert prompter.chat(HELLO)[0] == 0  # the model's first token


def test_text_that_cannot_fit_is_not_tokenized(prompter, monkeypatch):
    monkeypatch.setattr(prompter, "_tokenizer", None)
    with pytest.raises(PromptTooLong):
        prompter.encode("x" * 10**6)


def test_an_empty_prompt_begins_with_the_first_token(prompter):
    assert prompter.prompt("") == (0,)
    assert prompter.prompt([]) == (0,)
    assert prompter.prompt(["a", 5]) == (*prompter.prompt("a"), 5)
    prompter._tokenizer.bos_token = None
    with pytest.raises(ApiError, match="empty"):
        prompter.prompt([])


def test_special_tokens_are_found_by_their_text(prompter):
    tokenizer = embedded().tokenizer
    assert prompter.special_tokens([tokenizer.eos_token, "<think>"]) == {tokenizer.eos_token_id: tokenizer.eos_token}
