"""One turn of a conversation, whichever family asks for it: the engine's request, and how its answer is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from stratakv.serve.api.answer_text import AnswerText
from stratakv.serve.api.binding import asked_grammar, call_grammar, call_or
from stratakv.serve.api.errors import ApiError
from stratakv.serve.api.prompts import begun_answer
from stratakv.serve.api.reasoning import Marks, marks_of, thinking_variables
from stratakv.serve.api.requests import generation_request
from stratakv.serve.api.schemas_openai import ChatBody, Message, NamedTool, Tool
from stratakv.serve.api.settings import Context
from stratakv.serve.api.tools import CALL_MARKS
from stratakv.serve.request import GenerationRequest, GrammarSpec

# Arguments of the template call itself: a request may not set them
_RESERVED = {"messages", "conversation", "tools", "chat_template", "tokenize", "add_generation_prompt", "documents"}
_RESERVED |= {"return_tensors", "return_dict", "padding", "truncation", "max_length", "tokenizer_kwargs"}
_RESERVED |= {"continue_final_message", "return_assistant_tokens_mask", "processor_kwargs", "raise_exception"}
_SLACK = 8  # characters that templates write after a mark that opens a thought


@dataclass(frozen=True)
class Turn:
    """request: of one answer. names: of the tools that it may call, `most` of them. strip: whether blanks at its start are the
    plain template's. marks: of thoughts, None: they are not looked for; opened: the prompt ends within a thought.
    """

    request: GenerationRequest
    names: tuple[str, ...] = ()
    most: int | None = None
    strip: bool = False
    marks: Marks | None = None
    opened: bool = False

    def reader(self) -> AnswerText:
        """Reads one answer."""
        return AnswerText(self.names, strip=self.strip, marks=self.marks, opened=self.opened, most=self.most)


def as_chat(given: Mapping[str, Any]) -> ChatBody:
    """The chat's body that another family's request comes to."""
    try:
        return ChatBody.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ApiError(f"as a chat's {place}: {first['msg']}", param="messages") from None


async def turn_of(context: Context, body: ChatBody, *, bound: bool = True) -> Turn:
    """What a chat's body asks for. bound: as its tools and formats bind it; else only the prompt is of interest."""
    prompter = context.prompter
    tools = [] if body.tool_choice == "none" else tool_dicts(body.tools)
    grammar = _grammar(context, body, tools) if bound else None
    arguments = prompt_arguments(body, tools)
    prompt = await prompter.run(prompter.chat, *arguments)
    request = _request(context, body, prompt, grammar)
    return await turn_for(
        context,
        request,
        names=tuple(tool["function"]["name"] for tool in tools),
        most=1 if body.parallel_tool_calls is False else None,
        begun=begun_answer(*(arguments[index] for index in (0, 3, 4))),
        thoughts=body.reasoning_format != "none",
    )


async def turn_for(
    context: Context,
    request: GenerationRequest,
    *,
    names: tuple[str, ...] = (),
    most: int | None = None,
    begun: str | None = None,
    thoughts: bool = True,
) -> Turn:
    """A request of a conversation, read as the model's template has it. begun: of the answer, in the prompt; thoughts: whether
    they are parted from what is said."""
    prompter = context.prompter
    marks = marks_of(prompter.own_template) if thoughts else None
    opened = marks is not None and await prompter.run(_ends_in_thought, context, request.prompt, marks, begun or "")
    if (
        opened and marks is not None and request.grammar is not None
    ):  # the thought is free, what comes after it is bound
        request = replace(request, grammar_after=marks.end)
    shown = prompter.special_tokens((*((marks.begin, marks.end) if marks else ()), *(CALL_MARKS if names else ())))
    return Turn(
        replace(request, shown=shown),
        names,
        most,
        strip=not begun and prompter.own_template is None,
        marks=marks if opened or not begun else None,
        opened=opened,
    )


def prompt_arguments(body: ChatBody, tools: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    """The arguments of Prompter.chat."""
    think = None if body.thinking is None else body.thinking.type != "disabled"
    variables = {**thinking_variables(think, body.reasoning_effort), **template_variables(body.chat_template_kwargs)}
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


def _ends_in_thought(context: Context, prompt: tuple[int, ...], marks: Marks, begun: str) -> bool:
    """Whether a prompt opens a thought and leaves it open, before the answer or in what is begun of it."""
    length = len(begun) + len(marks.begin) + _SLACK
    tail = context.prompter.decode(prompt[-length:])[-length:]
    return tail.rfind(marks.begin) > tail.rfind(marks.end)


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


def _object(arguments: str | dict[str, Any]) -> Any:
    """Arguments of an earlier call as an object, where they are one: templates write them as JSON themselves."""
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
        return value if isinstance(value, dict) else arguments
    return arguments
