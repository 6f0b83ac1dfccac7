"""OpenAI's /v1/chat/completions: templates, tools, response formats."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from stratakv.serve.api.answers import Answer, TicketStream, gather, merge, submit_all, timings
from stratakv.serve.api.binding import asked_grammar, call_grammar, call_or
from stratakv.serve.api.errors import ApiError
from stratakv.serve.api.openai import FINGERPRINT, finite, usage
from stratakv.serve.api.prompts import begun_answer
from stratakv.serve.api.requests import choices, generation_request, note_headers, notes_of, sse, stream_errors
from stratakv.serve.api.schemas_openai import ChatBody, Message, NamedTool, Tool
from stratakv.serve.api.settings import Context
from stratakv.serve.api.tools import ChatText, ToolCall
from stratakv.serve.request import Finish, GenerationRequest, GrammarSpec, TokenInfo

if TYPE_CHECKING:
    from stratakv.serve.ticket import Ticket

# Arguments of the template call itself: a request may not set them
_RESERVED = {"messages", "conversation", "tools", "chat_template", "tokenize", "add_generation_prompt", "documents"}
_RESERVED |= {"return_tensors", "return_dict", "padding", "truncation", "max_length", "tokenizer_kwargs"}
_RESERVED |= {"continue_final_message", "return_assistant_tokens_mask", "processor_kwargs", "raise_exception"}


def router(context: Context) -> APIRouter:
    """The endpoints over this engine."""
    routes = APIRouter(tags=["OpenAI"])
    settings = context.settings

    @routes.post("/v1/chat/completions")
    @routes.post("/chat/completions", include_in_schema=False)
    async def chat(body: ChatBody, http: Request) -> Response:
        tools = [] if body.tool_choice == "none" else tool_dicts(body.tools)
        grammar = _grammar(context, body, tools)
        prompt = await context.prompter.run(context.prompter.chat, *_prompt(body, tools))
        request = _request(context, body, prompt, grammar)
        tickets = submit_all(context.engine, choices(request, body.n))
        names = [tool["function"]["name"] for tool in tools]
        begins = (
            begun_answer(message_dicts(body.messages), body.add_generation_prompt, body.continue_final_message) is None
        )
        texts = [ChatText(names, strip=begins and context.prompter.own_template is None) for _ in tickets]
        head = {"created": int(time.time()), "model": settings.alias, "system_fingerprint": FINGERPRINT}
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", **head}
        logprobs = request.sampling.logprobs is not None
        if body.stream:
            head["object"] = "chat.completion.chunk"
            chunks = stream_errors(_stream(head, body, tickets, texts, logprobs))
            headers = note_headers(grammar)
            return TicketStream(chunks, tickets, "text/event-stream", settings.send_seconds, headers)
        answers = await gather(http, tickets)
        said = [
            _choice(index, answer, text, body, logprobs)
            for index, (answer, text) in enumerate(zip(answers, texts, strict=True))
        ]
        finishes = [answer.finish for answer in answers]
        head["object"] = "chat.completion"
        numbers = {"usage": usage(finishes), "timings": timings(finishes[0])}
        return JSONResponse({**head, "choices": said, **numbers, **notes_of(grammar)}, headers=note_headers(grammar))

    @routes.post("/apply-template", tags=["llama-server"])
    async def apply_template(body: ChatBody) -> JSONResponse:
        tools = [] if body.tool_choice == "none" else tool_dicts(body.tools)
        return JSONResponse({"prompt": await context.prompter.run(context.prompter.chat_text, *_prompt(body, tools))})

    return routes


def _prompt(body: ChatBody, tools: list[dict[str, Any]]) -> tuple[Any, ...]:
    """The arguments of Prompter.chat."""
    variables = template_variables(body.chat_template_kwargs)
    if body.thinking is not None and body.thinking.type == "disabled":
        variables = {"enable_thinking": False, **variables}
    return message_dicts(body.messages), tools, variables, body.add_generation_prompt, body.continue_final_message


def message_dicts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates read them: text content, arguments of calls as objects."""
    result = []
    for message in messages:
        content = message.content
        text = (
            "".join(part.text for part in content) if isinstance(content, list) else (content or message.refusal or "")
        )
        role = "system" if message.role == "developer" else message.role
        plain: dict[str, Any] = {"role": role, "content": text}
        plain |= {
            key: value
            for key in ("name", "tool_call_id", "reasoning_content")
            if (value := getattr(message, key)) is not None
        }
        if message.tool_calls:
            plain["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": _object(call.function.arguments)},
                }
                for call in message.tool_calls
            ]
        result.append(plain)
    return result


def tool_dicts(tools: Sequence[Tool] | None) -> list[dict[str, Any]]:
    """Tools in OpenAI's form, without what was not given."""
    return [tool.model_dump(exclude_none=True) for tool in tools or ()]


def template_variables(given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """chat_template_kwargs, checked."""
    for name in given or ():
        if name in _RESERVED or not name.isidentifier():
            raise ApiError(f"chat_template_kwargs can't set {name[:100]!r}", param="chat_template_kwargs")
    return given or {}


def chat_logprobs(tokens: Sequence[TokenInfo]) -> dict[str, Any]:
    """The chat's form."""

    def one(text: str, logprob: float | None) -> dict[str, Any]:
        return {"token": text, "logprob": finite(logprob), "bytes": list(text.encode("utf-8", "surrogatepass"))}

    content = [
        {**one(token.text, token.logprob), "top_logprobs": [one(text, logprob) for _, text, logprob in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _grammar(context: Context, body: ChatBody, tools: list[dict[str, Any]]) -> GrammarSpec | None:
    choice = body.tool_choice
    asked = asked_grammar(body, body.response_format)
    if choice == "required" or isinstance(choice, NamedTool):
        if isinstance(choice, NamedTool):
            tools = [tool for tool in tools if tool["function"]["name"] == choice.function.name]
        if not tools:
            raise ApiError("tool_choice asks for a tool that `tools` does not hold", param="tool_choice")
        return call_grammar(tools)
    if not tools or asked is None:
        return asked
    both, *parts = call_or(tools, asked)
    for part in parts:  # an error in one of them names its place
        context.engine.grammars.matcher(part)
    return both


def _request(
    context: Context, body: ChatBody, prompt: tuple[int, ...], grammar: GrammarSpec | None
) -> GenerationRequest:
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError("top_logprobs needs logprobs: true", param="top_logprobs")
    logprobs = (body.top_logprobs or body.n_probs or 0) if body.logprobs else body.n_probs or None
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if asked is None and body.n_predict == 0:
        raise ApiError("n_predict 0: a chat's answer has 1 token or more", param="n_predict")
    stops = context.prompter.chat_stops
    return generation_request(context, body, prompt, asked=asked, logprobs=logprobs, grammar=grammar, stops=stops)


def _choice(index: int, answer: Answer, through: ChatText, body: ChatBody, logprobs: bool) -> dict[str, Any]:
    text = through.feed(answer.text)
    rest, calls = through.close()
    text += rest
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    reason: str = answer.finish.reason
    if calls:
        message |= {"content": text or None, "tool_calls": [call.openai() for call in calls[: _most(body)]]}
        reason = "tool_calls"
    choice = {
        "index": index,
        "message": message,
        "logprobs": chat_logprobs(answer.tokens) if logprobs else None,
        "finish_reason": reason,
    }
    if body.return_tokens:
        choice["tokens"] = [token.id for token in answer.tokens]
    return choice


def _most(body: ChatBody) -> int | None:
    """Calls of one answer."""
    return 1 if body.parallel_tool_calls is False else None


async def _stream(
    head: dict[str, Any],
    body: ChatBody,
    tickets: Sequence[Ticket],
    texts: Sequence[ChatText],
    logprobs: bool,
) -> AsyncIterator[str]:
    def chunk(index: int, delta: dict[str, Any], reason: str | None = None, **fields: Any) -> str:
        choice = {"index": index, "delta": delta, "logprobs": fields.pop("logprobs", None), "finish_reason": reason}
        return sse({**head, "choices": [choice], **fields})

    finishes: list[Finish] = []
    for index in range(len(tickets)):
        yield chunk(index, {"role": "assistant", "content": ""})
    async for index, item in merge(tickets):
        if not isinstance(item, Finish):
            text = texts[index].feed(item.text)
            probs = chat_logprobs(item.tokens) if logprobs else None
            fields = {"logprobs": probs, **({"timings": timings(item.progress)} if body.timings_per_token else {})}
            if text or probs:
                yield chunk(index, {"content": text}, None, **fields)
            continue
        finishes.append(item)
        reason: str = item.reason
        rest, calls = texts[index].close()
        if rest:
            yield chunk(index, {"content": rest})
        if calls:
            reason = "tool_calls"
            yield chunk(index, {"tool_calls": _call_deltas(calls[: _most(body)])})
        yield chunk(index, {}, reason, timings=timings(item))
    if body.stream_options and body.stream_options.include_usage:
        yield sse({**head, "choices": [], "usage": usage(finishes)})
    yield "data: [DONE]\n\n"


def _call_deltas(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    return [{"index": index, **call.openai()} for index, call in enumerate(calls)]


def _object(arguments: str | dict[str, Any]) -> Any:
    """Arguments of an earlier call as an object, where they are one: templates write them as JSON themselves."""
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
        return value if isinstance(value, dict) else arguments
    return arguments
