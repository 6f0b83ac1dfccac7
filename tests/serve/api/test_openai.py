"""The official `openai` client against the real server."""

from __future__ import annotations

import json

import openai
import pytest
from servers import ALIAS

GREEDY = {"model": ALIAS, "temperature": 0}
HELLO = [{"role": "user", "content": "Who goes there?"}]
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"where": {"enum": ["left", "right"]}},
            "required": ["where"],
            "additionalProperties": False,
        },
    },
}
COLOUR = {
    "type": "object",
    "properties": {"c": {"enum": ["red", "blue"]}},
    "required": ["c"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == ALIAS and client.models.retrieve(ALIAS).id == ALIAS
    assert (model.meta["profile"], model.meta["bytes_per_token"], model.meta["n_ctx"]) == ("turbo4", 3168, 1024)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_completion(client):
    answer = client.completions.create(prompt="The night was", max_tokens=8, **GREEDY)
    (choice,) = answer.choices
    assert choice.text and choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    assert client.completions.create(prompt="The night was", max_tokens=8, echo=True, **GREEDY).choices[0].text == (
        "The night was" + choice.text
    )


def test_the_servers_tokens_are_the_models(client, server):
    """Greedy, against the stock cache of transformers; turbo4's first tokens are the same."""
    import torch

    loaded = server.engine.loaded
    ids = loaded.tokenizer("The night was", return_tensors="pt").input_ids
    with torch.inference_mode():
        out = loaded.model.generate(ids, max_new_tokens=4, do_sample=False)
    expected = loaded.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert client.completions.create(prompt=ids[0].tolist(), max_tokens=4, **GREEDY).choices[0].text == expected


def test_several_prompts_and_n(client):
    answer = client.completions.create(prompt=["The night", "A ship"], n=2, max_tokens=3, **GREEDY)
    texts = [choice.text for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert texts[0] == texts[1] != texts[2] == texts[3]


def test_streams_say_the_same(client):
    whole = client.completions.create(prompt="The night was", max_tokens=12, **GREEDY)
    chunks = list(
        client.completions.create(
            prompt="The night was", max_tokens=12, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12
    assert chunks[-2].choices[0].finish_reason == "length"
    assert len(chunks) > 4


def test_chat(client):
    answer = client.chat.completions.create(messages=HELLO, max_completion_tokens=10, **GREEDY)
    message = answer.choices[0].message
    assert message.role == "assistant" and message.content == message.content.lstrip()
    stream = client.chat.completions.create(
        messages=HELLO, max_tokens=10, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    *chunks, last = stream
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == message.content
    assert last.usage.total_tokens == answer.usage.total_tokens


def test_a_conversation_finds_its_pages_again(client):
    long = [{"role": "user", "content": "The castle stood on a rock above the river. " * 30}]
    first = client.chat.completions.create(messages=long, max_tokens=2, **GREEDY)
    said = first.choices[0].message.model_dump()
    again = client.chat.completions.create(
        messages=[*long, said, {"role": "user", "content": "Go on."}], max_tokens=2, **GREEDY
    )
    assert again.usage.prompt_tokens_details.cached_tokens >= 256


def test_stop(client):
    free = client.completions.create(prompt="The night was", max_tokens=12, **GREEDY).choices[0].text
    word = free.split()[2]
    answer = client.completions.create(prompt="The night was", max_tokens=12, stop=[word, "never"], **GREEDY)
    assert answer.choices[0].text == free[: free.index(word)] and answer.choices[0].finish_reason == "stop"


def test_seeds(client):
    def draw(seed: int) -> str:
        body = {"temperature": 1.5, "top_p": 1.0, "seed": seed, "extra_body": {"top_k": 0, "min_p": 0.0}}
        return client.completions.create(model=ALIAS, prompt="The night was", max_tokens=12, **body).choices[0].text

    assert draw(1) == draw(1) != draw(2)


def test_penalties_and_bias_change_the_answer(client):
    def say(**options) -> str:
        answer = client.chat.completions.create(messages=HELLO, max_tokens=25, **GREEDY, **options)
        return answer.choices[0].message.content

    plain = say()
    said = {say(frequency_penalty=2.0), say(presence_penalty=1.9), say(extra_body={"repeat_penalty": 1.5})}
    assert plain not in said
    assert len(set(say(logit_bias={"65": 100}))) == 1


def test_logprobs(client):
    answer = client.completions.create(prompt="The night was", max_tokens=4, logprobs=3, **GREEDY).choices[0]
    assert len(answer.logprobs.tokens) == len(answer.logprobs.token_logprobs) == 4
    pairs = zip(answer.logprobs.tokens, answer.logprobs.top_logprobs, strict=True)
    assert all(len(top) <= 3 and token in top for token, top in pairs)
    assert "".join(answer.logprobs.tokens) == answer.text and answer.logprobs.text_offset[0] == 0
    chat = client.chat.completions.create(messages=HELLO, max_tokens=3, logprobs=True, top_logprobs=2, **GREEDY)
    content = chat.choices[0].logprobs.content
    assert len(content) == 3 and all(len(each.top_logprobs) == 2 and each.logprob <= 0 for each in content)
    assert content[0].logprob == content[0].top_logprobs[0].logprob  # greedy: the best one
    streamed = client.chat.completions.create(messages=HELLO, max_tokens=3, logprobs=True, stream=True, **GREEDY)
    tokens = [
        each.token for chunk in streamed if chunk.choices[0].logprobs for each in chunk.choices[0].logprobs.content
    ]
    assert tokens == [each.token for each in content]


@pytest.mark.parametrize("stream", [False, True])
def test_response_format(client, stream):
    format_ = {"type": "json_schema", "json_schema": {"name": "colour", "schema": COLOUR}}
    answer = client.chat.completions.create(
        messages=HELLO, max_tokens=30, response_format=format_, stream=stream, **GREEDY
    )
    pieces = (
        (chunk.choices[0].delta.content or "" for chunk in answer) if stream else [answer.choices[0].message.content]
    )
    text = "".join(pieces)
    assert json.loads(text)["c"] in ("red", "blue")


def test_json_object(client):
    answer = client.chat.completions.create(
        messages=HELLO, max_tokens=40, response_format={"type": "json_object"}, **GREEDY
    )
    assert answer.choices[0].message.content.startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_tools(client, stream, choice):
    """A base model calls a tool when it must: the answer is bound to the schema of its arguments."""
    options = {"messages": HELLO, "tools": [LOOK], "tool_choice": choice, "max_tokens": 60, "stream": stream, **GREEDY}
    answer = client.chat.completions.create(**options)
    if stream:
        chunks = list(answer)
        (call,) = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        assert not "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        message, reason = answer.choices[0].message, answer.choices[0].finish_reason
        (call,) = message.tool_calls
        result = {"role": "tool", "tool_call_id": call.id, "content": "a wall"}
        more = client.chat.completions.create(
            messages=[*HELLO, message.model_dump(), result], tools=[LOOK], max_tokens=4, tool_choice="none", **GREEDY
        )
        assert more.choices[0].message.tool_calls is None
    assert reason == "tool_calls" and call.function.name == "look"
    assert json.loads(call.function.arguments)["where"] in ("left", "right")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"mirostat": 2}, "mirostat"),
        ({"nonsense": 1}, "nonsense"),
        ({"reasoning_effort": 3}, "reasoning_effort"),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "messages"),
        ({"grammar": 'root ::= "a"', "json_schema": {}}, "grammar"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs"),
        ({"temperature": -1}, "temperature"),
        ({"repeat_penalty": 1e-320}, "repeat_penalty"),  # logits would be inf
        ({"n": 1000}, "n"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"id_slot": 99}, "id_slot"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream_options": {"nonsense": 1}}, "stream_options"),
    ],
    ids=lambda value: json.dumps(value)[:30] if isinstance(value, dict) else value,
)
def test_errors_name_the_parameter(client, body, param):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=ALIAS, messages=HELLO, max_tokens=2, extra_body=body)
    assert error.value.body["type"] == "invalid_request_error" and error.value.body["param"] == param
    assert error.value.body["message"]


def test_parameters_that_are_turned_off_are_let_through(client):
    off = {
        "mirostat": 0,
        "typical_p": 1.0,
        "store": False,
        "functions": None,
        "anything": None,
        "parallel_tool_calls": True,
    }
    answer = client.chat.completions.create(messages=HELLO, max_tokens=1, extra_body=off, **GREEDY)
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"stop": ["x"] * 17}, "stop: List should have at most 16 items"),
        ({"stop": ["x", ""]}, "stop.1: String should have at least 1 character"),
        ({"stop": {"x": 1}}, "stop: Input should be a valid string"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "messages.0.content.0.type: Input should be 'text'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text: Field required"),
        ({"tool_choice": "never"}, "tool_choice: Input should be 'none', 'auto' or 'required'"),
        ({"max_tokens": 0}, "max_tokens: it must be 1 or more, or -1"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)  # fmt: skip
def test_errors_say_what_is_wrong_with_the_form_that_was_given(client, body, says):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=ALIAS, messages=HELLO, extra_body={"max_tokens": 2, **body})
    assert error.value.body["message"].startswith(says)


def test_several_answers_differ_though_the_seed_is_given(client):
    wild = {"model": ALIAS, "seed": 3, "temperature": 1.5, "max_tokens": 12, "extra_body": {"top_k": 0, "min_p": 0}}
    for create, prompt in (
        (client.completions.create, {"prompt": "The night was"}),
        (client.chat.completions.create, {"messages": HELLO}),
    ):
        first, second = ([c.model_dump() for c in create(n=3, **prompt, **wild).choices] for _ in range(2))
        assert first == second and len({json.dumps({**choice, "index": 0}) for choice in first}) == 3


def test_as_many_tokens_as_fit(client):
    answer = client.completions.create(
        prompt=[5] * 1000, max_tokens=-1, temperature=0, model=ALIAS, extra_body={"ignore_eos": True}
    )
    assert answer.usage.total_tokens == 1024


def test_a_schema_without_end_is_the_requests_fault(client):
    """Nothing that fits it is finite: the grammar gives up while the answer is written."""
    link = {"type": "object", "properties": {"c": {"$ref": "#/$defs/n"}}, "required": ["c"]}
    schema = {"$defs": {"n": link}, "$ref": "#/$defs/n"}
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="grammar") as error:
        client.chat.completions.create(messages=HELLO, max_tokens=20, response_format=format_, **GREEDY)
    assert error.value.code == "generation_failed"


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "nonsense"}, "json_schema: "),
        ({"$ref": "file:///etc/passwd"}, "does not fetch"),
        ({"enum": [f"word {i}" for i in range(20_000)]}, "characters: at most 131,072"),
    ],
    ids=["type", "reference", "size"],
)
def test_bad_schemas_are_the_requests_fault(client, schema, says):
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match=says) as error:
        client.chat.completions.create(messages=HELLO, max_tokens=2, response_format=format_, **GREEDY)
    assert error.value.param == "response_format"
    look = {**LOOK, "function": {**LOOK["function"], "parameters": schema}}
    with pytest.raises(openai.BadRequestError, match=says) as error:
        client.chat.completions.create(messages=HELLO, max_tokens=2, tools=[look], tool_choice="required", **GREEDY)
    assert error.value.param == "tools"


def test_prompts_that_are_too_long(client):
    for prompt in ("word " * 5000, "x" * 10**6, [5] * 1024):
        with pytest.raises(openai.BadRequestError) as error:
            client.completions.create(prompt=prompt, max_tokens=2, **GREEDY)
        assert error.value.code == "context_length_exceeded"


def test_answers_end_with_the_context(client):
    answer = client.completions.create(prompt=[5] * 1000, max_tokens=5000, extra_body={"ignore_eos": True}, **GREEDY)
    assert answer.usage.total_tokens == 1024 and answer.choices[0].finish_reason == "length"


def test_tokens_outside_of_the_vocabulary(client):
    with pytest.raises(openai.BadRequestError, match="vocabulary of 4096"):
        client.completions.create(prompt=[4096], max_tokens=2, **GREEDY)
