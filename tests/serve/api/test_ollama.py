"""The official `ollama` client against the real server."""

from __future__ import annotations

import json

import ollama
import pytest
from servers import ALIAS

GREEDY = {"temperature": 0, "num_predict": 8}
HELLO = [{"role": "user", "content": "Who goes there?"}]
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def client(server):
    return ollama.Client(server.url)


def test_what_is_there(client, server):
    (model,) = client.list().models
    assert model.model == f"{ALIAS}:latest" and model.size == server.engine.loaded.weight_bytes
    shown = client.show(ALIAS)
    assert shown.details.family == "llama" and "completion" in shown.capabilities
    assert shown.modelinfo["llama.context_length"] == 4096
    told = [shown.modelinfo[f"stratakv.{name}"] for name in ("profile", "bytes_per_token", "context")]
    assert told == ["turbo4", 3168, 1024]
    assert client.ps().models[0].context_length == 1024


def test_chat(client):
    whole = client.chat(ALIAS, HELLO, options=GREEDY)
    assert whole.done and whole.done_reason == "length" and whole.eval_count == 8 and whole.total_duration > 0
    parts = list(client.chat(f"{ALIAS}:latest", HELLO, options=GREEDY, stream=True))
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_generate_goes_on_from_a_context(client):
    first = client.generate(ALIAS, "Who goes there?", system="Be brief.", options=GREEDY)
    assert len(first.context) == first.prompt_eval_count + 8
    more = client.generate(ALIAS, "Go on.", context=first.context, options=GREEDY)
    assert more.prompt_eval_count > len(first.context)
    parts = list(client.generate(ALIAS, "Who goes there?", system="Be brief.", options=GREEDY, stream=True))
    assert "".join(part.response for part in parts) == first.response
    assert parts[-1].context == first.context


def test_raw(client):
    raw = client.generate(ALIAS, "The night was", raw=True, options=GREEDY)
    plain = client.generate(ALIAS, "The night was", options=GREEDY)
    assert raw.prompt_eval_count < plain.prompt_eval_count  # no 'User:' around it


def test_format(client):
    schema = {
        "type": "object",
        "properties": {"c": {"enum": ["red", "blue"]}},
        "required": ["c"],
        "additionalProperties": False,
    }
    answer = client.chat(ALIAS, HELLO, format=schema, options={"temperature": 0, "num_predict": 30})
    assert json.loads(answer.message.content)["c"] in ("red", "blue")
    assert client.generate(ALIAS, "x", format="json", options=GREEDY).response.startswith("{")


def test_tools_are_taken(client):
    answer = client.chat(
        ALIAS, [*HELLO, {"role": "tool", "content": "a wall", "tool_name": "look"}], tools=[LOOK], options=GREEDY
    )
    assert answer.message.content or answer.message.tool_calls


def test_logprobs(client):
    answer = client.chat(ALIAS, HELLO, logprobs=True, top_logprobs=2, options=GREEDY)
    assert len(answer.logprobs) == 8 and len(answer.logprobs[0].top_logprobs) == 2


def test_loading_is_nothing_to_do(client):
    assert client.generate(ALIAS).done_reason == "load"
    assert client.chat(ALIAS).done_reason == "load"


def test_errors(client):
    for options, words in [({"mirostat": 2}, "mirostat"), ({"num_ctx": 10**6}, "num_ctx"), ({"top_k": -7}, "top_k")]:
        with pytest.raises(ollama.ResponseError, match=words) as error:
            client.chat(ALIAS, HELLO, options=options)
        assert error.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="not found") as error:
        client.chat("other", HELLO)
    assert error.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="'strata-8m' does not support thinking"):
        client.chat(ALIAS, HELLO, think=True)
