"""What the request bodies of all families share: the sampling parameters, and the rule for what is not supported.

An unknown parameter is an error that names it. null means "not given", and a parameter that is not supported is let through
where its value turns it off, since many clients send such defaults with every request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from stratakv.serve.api.errors import ApiError
from stratakv.serve.api.inert import without_inert
from stratakv.serve.json_schema import closed, place_of, unbound, without
from stratakv.serve.request import GrammarSpec
from stratakv.serve.samplers import SAMPLERS, SamplingParams

MAX_STOPS = 16
MAX_SCHEMA = 2**17  # characters
MAX_TOKENS = 2**31 - 1

# llama-server's letters, and names that its command line takes too
_LETTERS = {"e": "penalties", "d": "dry", "s": "top_n_sigma", "k": "top_k", "y": "typ_p", "p": "top_p", "m": "min_p"}
_LETTERS |= {"x": "xtc", "t": "temperature"}
_OTHER_NAMES = {"typical_p": "typ_p", "typical": "typ_p", "temp": "temperature", "nucleus": "top_p"}
_ALWAYS_OFF = ("adaptive_p",)  # in lists that clients send by default; its own parameters are refused where they are on

Stop = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Stops = Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKENS)]


def _some(tokens: int) -> int:
    if not tokens:
        raise ValueError("it must be 1 or more, or -1: as many as fit")
    return tokens


NewTokens = Annotated[int, Field(ge=-1, le=MAX_TOKENS, description="-1: as many as fit"), AfterValidator(_some)]
Bias = Annotated[float, Field(ge=-1e4, le=1e4)]
Breaker = Annotated[str, StringConstraints(min_length=1, max_length=40)]


def _list(value: Any) -> Any:
    """SillyTavern sends its list of breakers as a string of JSON."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return [value]
    return value


Breakers = Annotated[list[Breaker], Field(max_length=16), BeforeValidator(_list)]
SLOT = Field(None, ge=-1, le=2**15, description="wait for this slot; -1: any")


class Body(BaseModel):
    """A JSON body whose keys are all known. drops_inert: parameters that change nothing are let through, see inert.py."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())
    drops_inert: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _without_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = {field.alias or name for name, field in cls.model_fields.items()}
        if cls.drops_inert:
            return without_inert(data, known)
        return {key: value for key, value in data.items() if key in known or value is not None}


class Part(Body):
    """An object within a request. Clients send back what answers hold, or marks for others: unknown keys are not read."""

    model_config = ConfigDict(extra="ignore")


def tag_of(value: Any, name: str = "type") -> str | None:
    """Which form of a part is given, for pydantic's tags; no key of a part looks like it."""
    kind = value.get(name) if isinstance(value, dict) else getattr(value, name, None)
    return f"<{kind}>" if isinstance(kind, str) else None


class SamplingBody(Body):
    """Sampling by llama.cpp's names and meanings; what is left out has llama.cpp's default."""

    drops_inert = True

    temperature: float | None = Field(None, ge=0, le=100)
    top_k: int | None = Field(None, ge=-1, le=MAX_TOKENS, description="0 or -1: all")
    top_p: float | None = Field(None, ge=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, ge=0.01, le=100)
    repeat_last_n: int | None = Field(None, ge=-1, le=MAX_TOKENS)
    presence_penalty: float | None = Field(None, ge=-100, le=100)
    frequency_penalty: float | None = Field(None, ge=-100, le=100)
    typical_p: float | None = Field(None, ge=0, le=1, description="1: off")
    typ_p: float | None = Field(None, ge=0, le=1, description="another name of typical_p")
    top_n_sigma: float | None = Field(None, ge=-1, le=100, description="0 and below: off")
    xtc_probability: float | None = Field(None, ge=0, le=1, description="0: off")
    xtc_threshold: float | None = Field(None, ge=0, le=1, description="above 0.5: off")
    dynatemp_range: float | None = Field(None, ge=0, le=100, description="0: off")
    dynatemp_exponent: float | None = Field(None, ge=0, le=100)
    dry_multiplier: float | None = Field(None, ge=0, le=100, description="0: off")
    dry_base: float | None = Field(None, ge=0, le=100, description="below 1: llama.cpp's 1.75")
    dry_allowed_length: int | None = Field(None, ge=0, le=MAX_TOKENS)
    dry_penalty_last_n: int | None = Field(None, ge=-1, le=MAX_TOKENS, description="0: off, -1: all")
    dry_sequence_breakers: Breakers | None = Field(None, description="a list, or the same as JSON in a string")
    samplers: str | Annotated[list[str], Field(max_length=32)] | None = Field(
        None, description="which samplers run, in this order: names, or llama-server's letters"
    )
    seed: int | None = Field(None, ge=-1, lt=2**63, description="-1: another draw each time")


def sampling_params(
    body: SamplingBody,
    *,
    vocabulary: int,
    logit_bias: Mapping[str, float] | list[tuple[int, float | bool]] | None = None,
    logprobs: int | None = None,
) -> SamplingParams:
    """The engine's form. logit_bias: {token id as text: bias} or [[id, bias or false]]; false bans the token."""
    given = {name: value for name in SamplingBody.model_fields if (value := getattr(body, name)) is not None}
    typical = given.pop("typ_p", 1.0)
    given["typical_p"] = max(min(given.get("typical_p", 1.0), typical), 1e-6)
    if given.get("dry_base", 1) < 1:
        del given["dry_base"]
    if (breakers := given.pop("dry_sequence_breakers", None)) is not None:
        given["dry_sequence_breakers"] = tuple(breakers)
    if (order := given.pop("samplers", None)) is not None:
        given["samplers"] = sampler_order(order)
    if given.get("seed") == -1:
        del given["seed"]
    if given.get("top_k") == -1:
        given["top_k"] = 0
    if "top_p" in given:
        given["top_p"] = max(given["top_p"], 1e-6)
    if given.get("temperature", 1) < 1e-4:  # below, logits overflow; the draw is greedy anyway
        given["temperature"] = 0.0
    return SamplingParams(**given, logit_bias=_biases(logit_bias, vocabulary), logprobs=logprobs)


def sampler_order(given: str | list[str]) -> tuple[str, ...]:
    """Samplers by llama-server's names, or by its letters in one string; ApiError for what is none."""
    names = [_LETTERS.get(letter, letter) for letter in given] if isinstance(given, str) else given
    names = [_OTHER_NAMES.get(name, name) for name in names if name not in _ALWAYS_OFF]
    for name in names:
        if name not in SAMPLERS:
            allowed = f"{', '.join(SAMPLERS)}, or the letters {''.join(_LETTERS)}"
            raise ApiError(f"samplers: {name[:50]!r} is none, there are {allowed}", param="samplers")
    return tuple(names)


def _biases(given: Mapping[str, float] | list[tuple[int, float | bool]] | None, vocabulary: int) -> dict[int, float]:
    pairs = list(given.items()) if isinstance(given, Mapping) else list(given or ())
    biases: dict[int, float] = {}
    for token, bias in pairs:
        if not str(token).isascii() or not str(token).isdigit() or len(str(token)) > 10 or int(token) >= vocabulary:
            shown = repr(token)[:50]
            raise ApiError(f"logit_bias names the token {shown}, ids are 0 to {vocabulary - 1}", param="logit_bias")
        if bias is True:
            raise ApiError(f"logit_bias of token {token}: a number, or false to ban it", param="logit_bias")
        biases[int(token)] = float("-inf") if bias is False else float(bias)
    return biases


def stop_list(stop: str | list[str] | None) -> tuple[str, ...]:
    """One or several stop texts as a tuple."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def schema_grammar(schema: Mapping[str, Any], parameter: str, *, strict: bool = False) -> GrammarSpec:
    """A JSON schema as the engine takes it, without the free blanks between tokens: small models never leave those.

    parameter: of the request, that it came from. strict: what can't bind is an error, not a note. ApiError for one that takes
    long to read, since all answers wait meanwhile.
    """
    notes = loose_parts(schema, parameter, strict=strict)
    bound = closed(without(schema, unbound(schema)))
    tight = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", ", "lenient": True}
    text = json.dumps({"x-guidance": tight, **bound})
    if len(text) > MAX_SCHEMA:
        raise ApiError(f"a JSON schema of {len(text):,} characters: at most {MAX_SCHEMA:,}", param=parameter)
    return GrammarSpec("json_schema", text, parameter, notes)


def loose_parts(schema: Mapping[str, Any], parameter: str, *, strict: bool, prefix: str = "") -> tuple[str, ...]:
    """Keywords of a schema that can't bind, with their paths; ApiError for the first one when it is strict."""
    places = [prefix + place_of(path, keyword) for path, keyword in unbound(schema)]
    if places and strict:
        raise ApiError(
            f"{parameter}: {places[0][:300]} can't bind an answer, and the schema is strict: leave it out, or strict off",
            param=parameter,
        )
    return tuple(f"{parameter}: {place[:300]} does not bind the answer" for place in places)


def json_object(parameter: str) -> GrammarSpec:
    """Any JSON object."""
    return schema_grammar({"type": "object"}, parameter)
