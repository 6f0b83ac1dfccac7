"""The assistant's last message is continued, in all families; what can't be is refused in words."""

from __future__ import annotations

import httpx
import ollama
import pytest
from servers import ALIAS

USER = {"role": "user", "content": "Who goes there?"}
BEGUN = {"role": "assistant", "content": "It is the"}
CALLS = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}
PROMPT = "User: Who goes there?\n\nAssistant:"


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def applied(http, *messages, **options):
    answer = http.post("/apply-template", json={"messages": [USER, *messages], **options})
    assert answer.status_code == 200, answer.text
    return answer.json()["prompt"]


def test_templates(http):
    assert applied(http) == PROMPT
    assert applied(http, BEGUN) == f"{PROMPT} It is the"
    assert applied(http, BEGUN, continue_final_message=True) == f"{PROMPT} It is the"
    assert applied(http, BEGUN, add_generation_prompt=False) == f"{PROMPT} It is the\n\n"
    assert applied(http, BEGUN, continue_final_message=False) == f"{PROMPT} It is the\n\nAssistant:"
    assert applied(http, {**BEGUN, "content": ""}) == PROMPT
    assert applied(http, add_generation_prompt=False) == "User: Who goes there?\n\n"
    assert applied(http, {**BEGUN, "content": " It"}) == f"{PROMPT} It"


def test_an_answer_goes_on(http):
    """The same tokens as the same text gets without messages."""
    options = {"temperature": 0, "max_tokens": 6}
    chat = http.post("/v1/chat/completions", json={"messages": [USER, BEGUN], **options}).json()
    plain = http.post("/v1/completions", json={"prompt": f"{PROMPT} It is the", **options}).json()
    assert chat["choices"][0]["message"]["content"] == plain["choices"][0]["text"]
    assert plain["choices"][0]["text"].startswith(" "), "the blank before the next word is kept"
    assert chat["usage"] == plain["usage"]


def test_ollama_goes_on(server, http):
    answer = ollama.Client(server.url).chat(ALIAS, [USER, BEGUN], options={"temperature": 0, "num_predict": 6})
    body = {"messages": [USER, BEGUN], "temperature": 0, "max_tokens": 6}
    chat = http.post("/v1/chat/completions", json=body).json()
    assert answer.message.content == chat["choices"][0]["message"]["content"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/apply-template", "/api/chat"])
@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([USER, BEGUN, BEGUN], "end with two of the assistant's"),
        ([USER, CALLS], "end with the assistant's tool calls: add a message with each result"),
    ],
)
def test_what_can_not_be_continued(http, path, messages, says):
    answer = http.post(path, json={"model": ALIAS, "messages": messages})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert says in (error if path == "/api/chat" else error["message"])


def test_wishes_that_contradict(http):
    def refused(message, **options):
        answer = http.post("/v1/chat/completions", json={"messages": [USER, message], **options})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "continue_final_message"
        return answer.json()["error"]["message"]

    assert "the last message is the user's" in refused(USER, continue_final_message=True)
    assert "set one of them" in refused(BEGUN, continue_final_message=True, add_generation_prompt=True)
