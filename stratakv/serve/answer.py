"""One request's answer as it grows: the draw of each token, its text, and when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace

import torch

from stratakv.serve.grammar import Matcher
from stratakv.serve.request import Finish, FinishReason, Piece, Progress, TokenInfo
from stratakv.serve.sampling import Alternatives, Sampler, log_probabilities
from stratakv.serve.sequence import Sequence
from stratakv.serve.text import TextStream
from stratakv.serve.ticket import Ticket


class Answer:
    """What belongs to a request beside its pages.

    limit: tokens of the answer, at most. end_tokens: that end the model's text. token_text: what a single token looks like.
    """

    def __init__(
        self,
        sequence: Sequence,
        ticket: Ticket,
        stream: TextStream,
        matcher: Matcher | None,
        *,
        limit: int,
        end_tokens: frozenset[int],
        token_text: Callable[[int], str],
    ) -> None:
        request = sequence.request
        sampling = request.sampling
        if request.ignore_eos and end_tokens:  # as llama.cpp does: such tokens are never drawn
            banned = dict.fromkeys(end_tokens, -float("inf"))
            sampling = replace(sampling, logit_bias={**sampling.logit_bias, **banned})
        self.sequence, self.ticket, self.limit = sequence, ticket, limit
        self._sampler, self._stream = Sampler(sampling, stream.tokenizer), stream
        self._matcher = matcher if request.grammar_after is None else None
        self._waits, self._before = (
            matcher if request.grammar_after is not None else None,
            "",
        )  # for this text to end as it must
        self._end_tokens, self._token_text, self._tokenizer = end_tokens, token_text, stream.tokenizer
        self._scores: dict[int, tuple[float, Alternatives]] = {}  # by the place in the prompt
        self._lines = False
        self._waiting: list[TokenInfo] = []  # tokens whose text is not certain yet
        self.items: list[Piece | Finish] = []
        self.finished: Finish | None = None

    def draw(self, logits: torch.Tensor) -> None:
        """The next token, from float32 logits [vocabulary]; pieces and the finish go to `items`."""
        sequence = self.sequence
        if sequence.first_token is None:
            sequence.first_token = time.perf_counter()
            if sequence.request.score_prompt:
                self._emit_prompt()
        if self.limit == 0:
            self.finish("length")
            return
        if self._matcher is not None and self._matcher.complete:
            self.finish("stop")
            return
        mask = self._matcher.mask() if self._matcher is not None else None
        token = self._sampler.draw(logits, sequence.tokens, mask)
        sequence.tokens.append(token)
        if token in self._end_tokens:
            if sequence.request.score_prompt:  # who adds up log-probabilities counts the answer's tokens
                self._waiting.append(self._info(token, "", logits))
            self.finish("stop")
            return
        if self._matcher is not None:
            self._matcher.accept(token)
        text, certain = self._stream.add(token)
        self._bind_after(text)
        self._waiting.append(self._info(token, text, logits))
        self._lines = self._lines or "\n" in text
        if certain or self._stream.stopped is not None:
            self._emit(certain)
        if self._stream.stopped is not None or (self._matcher is not None and self._matcher.complete):
            self.finish("stop")
        elif sequence.generated >= self.limit or self._late():
            self.finish("length")

    def _bind_after(self, text: str) -> None:
        """Let the grammar bind from the next token on, when what comes before it is over with this text."""
        mark = self.sequence.request.grammar_after
        if self._waits is None or mark is None:
            return
        self._before = self._before[1 - len(mark) :] + text if len(mark) > 1 else text
        if mark in self._before:
            self._matcher, self._waits = self._waits, None

    def score(self, end: int, logits: torch.Tensor) -> None:
        """Take what the model says of the prompt's tokens: float32 logits [n, vocabulary] of its tokens end - n to end."""
        tokens, count = self.sequence.request.prompt, self._sampler.params.logprobs or 0
        for place, row in enumerate(logits, end - len(logits) + 1):
            if place < len(tokens):
                self._scores[place] = log_probabilities(row, tokens[place], count)

    def finish(self, reason: FinishReason, error: str | None = None, *, impossible: bool = False) -> None:
        """End the answer; what was held back comes out, unless a stop string was found. error, impossible: as in Finish."""
        if self.finished is not None:
            return
        held = self._stream.flush()
        if held or self._waiting:
            self._emit(held)
        numbers = asdict(self._progress())
        self.finished = Finish(
            **numbers, reason=reason, stop_string=self._stream.stopped, error=error, impossible=impossible
        )
        self.items.append(self.finished)

    def _progress(self) -> Progress:
        sequence, now = self.sequence, time.perf_counter()
        started, first = sequence.started, sequence.first_token
        return Progress(
            sequence.prompt_tokens,
            sequence.cached,
            sequence.generated,
            1e3 * ((first or now) - started) if started is not None else 0.0,
            1e3 * (now - first) if first is not None else 0.0,
        )

    def _late(self) -> bool:
        """Whether the answer has taken as long as it may, and has a line to end at."""
        most, first = self.sequence.request.max_ms, self.sequence.first_token
        return most is not None and self._lines and first is not None and time.perf_counter() - first > most / 1e3

    def _emit(self, text: str) -> None:
        self.items.append(Piece(text, tuple(self._waiting), progress=self._progress()))
        self._waiting = []

    def _emit_prompt(self) -> None:
        stream, tokens = TextStream(self._tokenizer), []
        for place, token in enumerate(self.sequence.request.prompt):
            text, _ = stream.add(token)
            own, top = self._scores.pop(place, (None, ()))
            tokens.append(TokenInfo(token, text, own, tuple((id_, self._token_text(id_), log) for id_, log in top)))
        text = "".join(each.text for each in tokens)
        self.items.append(Piece(text, tuple(tokens), prompt=True, progress=self._progress()))

    def _info(self, token: int, text: str, logits: torch.Tensor) -> TokenInfo:
        count = self._sampler.params.logprobs
        if count is None:
            return TokenInfo(token, text)
        if self.sequence.request.post_sampling:
            own, best = self._sampler.drawn_from(token, count)
        else:
            own, best = log_probabilities(logits, token, count)
        return TokenInfo(token, text, own, tuple((id_, self._token_text(id_), log) for id_, log in best))
