"""From text, token ids or messages to the tokens of a prompt."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from stratakv.engine.chat_template import FALLBACK_TEMPLATE, own_template, rendered, template_problem
from stratakv.engine.prompt import prompt_ids
from stratakv.errors import UserError
from stratakv.serve.api.errors import ApiError
from stratakv.serve.api.tools import messages_without_tools
from stratakv.serve.request import PromptTooLong

T = TypeVar("T")


class Prompter:
    """The text side of a model. Its tokenizer is a copy and has a thread of its own: tokenizers are not made for several,
    and a long prompt must not hold up the answers that stream meanwhile.

    vocabulary: rows of the embedding. context: tokens; text that can't fit is refused before it is tokenized.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, context: int) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._worker = ThreadPoolExecutor(1, "stratakv-prompts")
        self.vocabulary, self.context = vocabulary, context
        self._longest = max((len(token) for token in tokenizer.get_vocab()), default=1)
        added = getattr(tokenizer, "added_tokens_decoder", {}) or {}
        self._special = {token.content: id_ for id_, token in added.items() if token.special}
        self.own_template = None if template_problem(tokenizer) else own_template(tokenizer)

    @property
    def template(self) -> str:
        """The model's chat template, or the plain one, for base models and where theirs does not compile."""
        return self.own_template or FALLBACK_TEMPLATE

    @property
    def chat_stops(self) -> tuple[str, ...]:
        """Where a chat answer ends beside the model's own end: a base model would go on with the user's next message."""
        return () if self.own_template else ("\nUser:",)

    def close(self) -> None:
        """End the thread."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call one of the methods below in the tokenizer's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, lambda: function(*arguments))

    def encode(self, text: str, special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of text. special: add the model's first token; parse_special: read special tokens where they stand."""
        self._check_length(text)
        options = {} if parse_special else {"split_special_tokens": True}
        ids: list[int] = self._tokenizer(text, add_special_tokens=special, **options).input_ids
        return ids

    def _check_length(self, text: str) -> None:
        if len(text) > self._longest * self.context:
            raise PromptTooLong(len(text) // self._longest, self.context)

    def _begin(self, text: str, special: bool = True) -> list[int]:
        """As encode, of a text that is to be continued: the model's first token stands there once."""
        self._check_length(text)
        return prompt_ids(self._tokenizer, text, special=special)

    def prompt(self, prompt: str | Sequence[int | str]) -> tuple[int, ...]:
        """Tokens of a text, of token ids, or of both mixed, as llama-server takes them."""
        if isinstance(prompt, str):
            ids = self._begin(prompt)
        else:
            ids = []
            for position, part in enumerate(prompt):
                ids += self._begin(part, special=position == 0) if isinstance(part, str) else [part]
        for id_ in ids:
            if not 0 <= id_ < self.vocabulary:
                raise ApiError(f"token {id_} is outside of the vocabulary of {self.vocabulary}", param="prompt")
        first = self._tokenizer.bos_token_id
        if not ids and first is None:
            raise ApiError("the prompt is empty, and this model has no first token to begin with", param="prompt")
        return tuple(ids or [first])

    def chat_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_last: bool | None = None,
    ) -> str:
        """Messages as the text that the model was trained to continue.

        tools: OpenAI's form; a template that doesn't know tools gets them as a system message. variables: of the template.
        add_generation_prompt: False: no beginning of an answer. continue_last: whether the text ends within the assistant's last
        message, as llama-server's does; None: where it is the last one, unless there is to be no beginning of an answer.
        """
        begun = begun_answer(messages, add_generation_prompt, continue_last)
        if begun is not None:
            text = self._rendered(messages[:-1], tools, variables, True)
            gap = " " if self.own_template is None and begun[:1].strip() else ""  # the plain one ends with "Assistant:"
            return text + gap + begun
        return self._rendered(messages, tools, variables, add_generation_prompt is not False)

    def _rendered(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any] | None,
        add_generation_prompt: bool,
    ) -> str:
        if self.own_template is None or (tools and "tools" not in self.own_template):
            messages, tools = messages_without_tools(messages, tools), ()
        try:
            return rendered(
                self._tokenizer,
                messages,
                self.template,
                tools=list(tools) or None,
                add_generation_prompt=add_generation_prompt,
                **(variables or {}),
            )
        except UserError as error:
            raise ApiError(str(error), param="messages") from None

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_last: bool | None = None,
    ) -> tuple[int, ...]:
        """Tokens of messages up to where the answer goes on; a model's own template holds its first token already."""
        text = self.chat_text(messages, tools, variables, add_generation_prompt, continue_last)
        ids = self._begin(text, special=self.own_template is None)
        return tuple(ids) or self.prompt("")

    def special_tokens(self, texts: Sequence[str]) -> dict[int, str]:
        """Which of these texts are special tokens, which answers leave out unless they are to be shown."""
        return {self._special[text]: text for text in texts if text in self._special}

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of token ids, special tokens included unless they are to be skipped."""
        for id_ in ids:
            if not 0 <= id_ < self.vocabulary:
                raise ApiError(f"token {id_} is outside of the vocabulary of {self.vocabulary}", param="tokens")
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token by itself."""
        return [self._tokenizer.decode([id_], skip_special_tokens=False) for id_ in ids]


def begun_answer(
    messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool | None = None, continue_last: bool | None = None
) -> str | None:
    """The text of the assistant's last message where the answer goes on from it, else None.

    ApiError where that can't be: two such messages at the end, calls without their results, or nothing of the assistant's.
    """
    last = messages[-1]
    if continue_last and add_generation_prompt:
        raise ApiError(
            "add_generation_prompt begins a new answer, continue_final_message goes on with one: set one of them",
            param="continue_final_message",
        )
    if last["role"] != "assistant":
        if continue_last:
            raise ApiError(
                f"continue_final_message: the last message is the {last['role']}'s, not the assistant's",
                param="continue_final_message",
            )
        return None
    if add_generation_prompt is False and not continue_last:
        return None
    if len(messages) > 1 and messages[-2]["role"] == "assistant":
        raise ApiError(
            "the messages end with two of the assistant's: only one can be continued, join them", param="messages"
        )
    if last.get("tool_calls"):
        raise ApiError(
            "the messages end with the assistant's tool calls: add a message with each result", param="messages"
        )
    return None if continue_last is False else str(last.get("content") or "")
