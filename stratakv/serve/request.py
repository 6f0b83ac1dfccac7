"""What goes into the engine and what comes out: plain values, no tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from stratakv.errors import UserError

GrammarKind = Literal["json_object", "json_schema", "regex", "lark", "gbnf"]
FinishReason = Literal["stop", "length", "cancelled", "error"]
SlotStatus = Literal["idle", "prompt", "decode"]

MAX_LOGPROBS = 20
SAMPLERS = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")
"""llama.cpp's samplers in its own order."""


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is drawn; llama.cpp's meanings, defaults and order. temperature 0: the most likely token.

    repeat_last_n, dry_penalty_last_n: tokens that the three penalties, and DRY, look at, -1: all, 0: none. Off are: typical_p 1,
    top_n_sigma 0 or less, xtc_probability 0, xtc_threshold above 0.5, dry_multiplier 0, dynatemp_range 0. samplers: which ones
    run, in this order; what is left out is off, temperature too. seed None: another draw each time. logit_bias: added to a
    token's logit; -inf bans it. logprobs None: none wanted; 0 to 20: that many alternatives beside each token.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    samplers: tuple[str, ...] = SAMPLERS
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None

    def __post_init__(self) -> None:
        """Raise UserError for what can't be meant."""
        checks = [
            ("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 or more, and finite"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (all) or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "0 to 1"),
            ("repeat_penalty", self.repeat_penalty, 0 < self.repeat_penalty < math.inf, "above 0, and finite"),
            ("repeat_last_n", self.repeat_last_n, self.repeat_last_n >= -1, "-1 (all), 0 (none) or more"),
            ("presence_penalty", self.presence_penalty, math.isfinite(self.presence_penalty), "finite"),
            ("frequency_penalty", self.frequency_penalty, math.isfinite(self.frequency_penalty), "finite"),
            ("typical_p", self.typical_p, 0 < self.typical_p <= 1, "above 0, at most 1"),
            ("top_n_sigma", self.top_n_sigma, math.isfinite(self.top_n_sigma), "finite"),
            ("xtc_probability", self.xtc_probability, 0 <= self.xtc_probability <= 1, "0 to 1"),
            ("xtc_threshold", self.xtc_threshold, 0 <= self.xtc_threshold <= 1, "0 to 1"),
            ("dynatemp_range", self.dynatemp_range, 0 <= self.dynatemp_range < math.inf, "0 or more, and finite"),
            (
                "dynatemp_exponent",
                self.dynatemp_exponent,
                0 <= self.dynatemp_exponent < math.inf,
                "0 or more, and finite",
            ),
            ("dry_multiplier", self.dry_multiplier, 0 <= self.dry_multiplier < math.inf, "0 or more, and finite"),
            ("dry_base", self.dry_base, 1 <= self.dry_base < math.inf, "1 or more, and finite"),
            ("dry_allowed_length", self.dry_allowed_length, self.dry_allowed_length >= 0, "0 or more"),
            (
                "dry_penalty_last_n",
                self.dry_penalty_last_n,
                self.dry_penalty_last_n >= -1,
                "-1 (all), 0 (none) or more",
            ),
            ("samplers", self.samplers, set(self.samplers) <= set(SAMPLERS), f"some of {', '.join(SAMPLERS)}"),
            ("seed", self.seed, self.seed is None or 0 <= self.seed < 2**64, "0 or more, below 2^64, or none"),
            (
                "logprobs",
                self.logprobs,
                self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
                "0 to 20, or none",
            ),
        ]
        for name, value, good, allowed in checks:
            if not good:
                raise UserError(f"{name} {value}: it must be {allowed}")
        for token, bias in self.logit_bias.items():
            if token < 0 or math.isnan(bias) or bias == math.inf:
                raise UserError(f"logit_bias {token}: {bias}: token ids are 0 or more, biases finite or -inf")

    def active(self, sampler: str) -> bool:
        """Whether a sampler changes anything with these settings."""
        penalties = (self.repeat_penalty, self.presence_penalty, self.frequency_penalty)
        return {
            "penalties": self.repeat_last_n != 0 and penalties != (1.0, 0.0, 0.0),
            "dry": self.dry_multiplier > 0 and self.dry_penalty_last_n != 0,
            "top_n_sigma": self.top_n_sigma > 0,
            "top_k": self.top_k > 0,
            "typ_p": self.typical_p < 1,
            "top_p": self.top_p < 1,
            "min_p": self.min_p > 0,
            "xtc": self.xtc_probability > 0 and self.xtc_threshold <= 0.5,
            "temperature": self.temperature != 1 or self.dynatemp_range > 0,
        }[sampler]


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
