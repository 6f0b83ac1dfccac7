"""What goes into the engine and what comes out: plain values, no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from stratakv.errors import UserError
from stratakv.serve.samplers import SamplingParams

GrammarKind = Literal["json_object", "json_schema", "regex", "lark", "gbnf"]
FinishReason = Literal["stop", "length", "cancelled", "error"]
SlotStatus = Literal["idle", "prompt", "decode"]


@dataclass(frozen=True)
class GrammarSpec:
    """What an answer must look like. text: the JSON schema, the regular expression, or the grammar; not used by json_object.
    parameter: of the request, that it came from. notes: what of it does not bind the answer, in words."""

    kind: GrammarKind
    text: str = ""
    parameter: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to continue.

    prompt: token ids, at least one. max_tokens: at most that many new ones. stop: texts before which the answer ends, found
    across token borders. ignore_eos: go on past the model's end-of-text token. slot: wait for this slot instead of any.
    cache_prompt: whether pages of earlier prompts may be used, and these be kept. score_prompt: the first piece holds the
    prompt's tokens with their log-probabilities, as sampling.logprobs says; no page of an earlier prompt is used then.
    post_sampling: log-probabilities are those that the answer was drawn with, after the samplers. max_ms: of writing, after
    which an answer ends once it has a line break. grammar_after: the text from which on the grammar binds, None: from the
    beginning. shown: special tokens that are part of the answer's text, and how they look in it.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    grammar: GrammarSpec | None = None
    slot: int | None = None
    cache_prompt: bool = True
    score_prompt: bool = False
    post_sampling: bool = False
    max_ms: int | None = None
    grammar_after: str | None = None
    shown: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenInfo:
    """A token that was generated, or of a prompt that was scored. logprob: natural logarithm of the model's own probability
    (before penalties, temperature and the like, unless post_sampling), None unless asked for, and of a prompt's first token;
    top: the most likely tokens at its place as (id, text, logprob), best first."""

    id: int
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Progress:
    """How far a request is. cached_tokens: of the prompt, found in pages that were there. prompt_ms: from the moment the request
    got a slot to its first token; decode_ms: from there on."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    prompt_ms: float = 0.0
    decode_ms: float = 0.0


@dataclass(frozen=True)
class Piece:
    """Text that can't change any more, and the tokens that it came from (a token may bring no text yet). prompt: they are the
    prompt's, before all pieces of the answer. progress: with this piece."""

    text: str
    tokens: tuple[TokenInfo, ...]
    prompt: bool = False
    progress: Progress = field(default_factory=Progress)


@dataclass(frozen=True, kw_only=True)
class Finish(Progress):
    """The end of an answer. error: in words, when reason is "error"; impossible: the request asked for what can't be, such as a
    grammar that no token can continue."""

    reason: FinishReason
    stop_string: str | None = None
    error: str | None = None
    impossible: bool = False


@dataclass(frozen=True)
class Limits:
    """What the engine may use.

    slots: requests that run at once. context: tokens of one request, prompt and answer. cache_bytes: for pages of all
    layers. prefill_chunk: tokens of prompts in one step when no request is waiting for its next token. queue: requests that
    wait. prefix_cache: whether finished prompts' pages are kept for later ones while there is room. deterministic: the same
    sums in any company, at the cost of longer steps beside prompts.
    """

    slots: int = 4
    context: int = 4096
    cache_bytes: int = 2**30
    prefill_chunk: int = 512
    queue: int = 256
    prefix_cache: bool = True
    deterministic: bool = False


class QueueFull(Exception):  # noqa: N818
    """As many requests wait as may. retry_after: seconds, estimated from what runs."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the queue is full, try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class NotRunning(Exception):  # noqa: N818
    """The engine is stopping, or its loop has failed: nothing is accepted any more."""


class PromptTooLong(UserError):  # noqa: N818
    """The prompt leaves no room for an answer. tokens: of the prompt; allowed: at most."""

    def __init__(self, tokens: int, allowed: int) -> None:
        super().__init__(
            f"the prompt has {tokens:,} tokens, this server takes at most {allowed:,} (start it with a larger -c)"
        )
        self.tokens, self.allowed = tokens, allowed


class GrammarError(UserError):
    """A grammar that can't be used. parameter: as in GrammarSpec."""

    def __init__(self, spec: GrammarSpec, problem: str) -> None:
        super().__init__(f"{spec.kind}: {problem}")
        self.parameter = spec.parameter


@dataclass(frozen=True)
class SlotSnapshot:
    """A slot: what it does, and for whom. prompt_done: tokens of the prompt that are in pages; tokens: all in pages."""

    id: int
    state: SlotStatus
    request: int | None = None
    prompt_tokens: int = 0
    prompt_done: int = 0
    cached_tokens: int = 0
    decoded: int = 0
    tokens: int = 0
    pages: int = 0


@dataclass(frozen=True)
class LayerSnapshot:
    """What a layer stores. layer: the model's index; window: tokens it keeps, None: all; nbytes: of one token outside of spans.

    recent, first: pages of its spans; fine: their type, None without spans.
    """

    layer: int
    role: str
    k: str
    v: str
    window: int | None
    nbytes: int
    recent: int = 0
    first: int = 0
    fine: str | None = None


@dataclass(frozen=True)
class Counters:
    """Since the start. Times in seconds."""

    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    preempted: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(frozen=True)
class Loss:
    """Something that this server can't do. feature: what, as in "no batching"; why: the reason, in words."""

    feature: str
    why: str


@dataclass(frozen=True)
class KindSnapshot:
    """Pages of one kind. kind: whole, without spans; fine or sealed, with. used, free and cached as in EngineSnapshot; nbytes: of
    all of them."""

    kind: str
    used: int
    free: int
    cached: int
    nbytes: int


@dataclass(frozen=True)
class EngineSnapshot:
    """How the engine stands.

    healthy: its loop runs; why: it doesn't, in words. running: requests in slots; queued: those that wait. pages: of all window
    groups, and kinds: by kind; used by running requests, free, and cached (kept for prefixes, given up when room is needed). A
    page is page_tokens tokens of all layers of a group. bytes_per_token: of all layers. tokens_per_second: generated, over the
    last seconds. batching: how sequences share a step, in words; lost: what can't be done with this model here.
    """

    healthy: bool
    why: str | None
    running: int
    queued: int
    slots: tuple[SlotSnapshot, ...]
    pages_used: int
    pages_free: int
    pages_cached: int
    kinds: tuple[KindSnapshot, ...]
    page_tokens: int
    cache_bytes: int
    used_bytes: int
    bytes_per_token: int
    tokens_per_second: float
    counters: Counters
    layers: tuple[LayerSnapshot, ...]
    profile: str
    batching: str
    lost: tuple[Loss, ...]
