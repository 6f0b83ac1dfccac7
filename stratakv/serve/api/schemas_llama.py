"""Request bodies of llama-server's own endpoints."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from stratakv.serve.api.schemas import MAX_TOKENS, SLOT, Bias, Body, SamplingBody, Stops, TokenId

Mixed = Annotated[list[TokenId | str], Field(min_length=1)]


class LlamaFields(SamplingBody):
    """What llama-server takes in its own endpoint and in OpenAI's alike."""

    n_predict: int | None = Field(None, ge=-1, le=MAX_TOKENS, description="-1: as many as fit")
    stop: Stops | None = None
    stream: bool | None = None
    n_probs: int | None = Field(None, ge=0, le=20, description="that many alternatives beside each token")
    post_sampling_probs: bool | None = Field(None, description="probabilities after the samplers instead of logprobs")
    logit_bias: dict[str, Bias] | list[tuple[TokenId, bool | Bias]] | None = None
    ignore_eos: bool | None = None
    cache_prompt: bool | None = None
    id_slot: int | None = SLOT
    grammar: Annotated[str, Field(max_length=2**16)] | None = Field(None, description="GBNF; empty: none")
    json_schema: dict[str, Any] | None = None
    return_tokens: bool | None = None
    t_max_predict_ms: int | None = Field(
        None, ge=-1, le=MAX_TOKENS, description="ends an answer after a line; 0, -1: off"
    )
    timings_per_token: bool | None = None
    response_fields: Annotated[list[str], Field(max_length=64)] | None = Field(
        None, description="of llama-server's own answer, as paths with '/'; OpenAI's form stays as it is"
    )


class NativeBody(LlamaFields):
    """POST /completion"""

    prompt: str | Annotated[list[TokenId | str | Mixed], Field(min_length=1)] = Field(
        description="a text, or token ids and texts mixed; without an id in it a list is several prompts"
    )
    model: str | None = Field(None, max_length=512)
    max_tokens: int | None = Field(None, ge=-1, le=MAX_TOKENS, description="where n_predict is not given")


class TokenizeBody(Body):
    """POST /tokenize. add_special: the model's first token too; with_pieces: the text of each token."""

    content: str
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeBody(Body):
    """POST /detokenize"""

    tokens: list[TokenId]


class SlotBody(Body):
    """POST /slots/{id}?action=save|restore; a plain name, no path. erase needs none."""

    filename: str | None = None
