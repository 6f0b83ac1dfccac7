"""The nested types that answers and calls of tools are bound to: references, lists, choices, a set."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Size(BaseModel):
    width: int = Field(ge=0, le=9)
    unit: Literal["cm", "m"]


class Parcel(BaseModel):
    """A parcel to send."""

    colour: Literal["red", "blue"]
    size: Size
    others: list[Size] = Field(max_length=1)
    labels: set[Literal["new", "old"]] = Field(max_length=2)


class Strict(BaseModel):
    """What OpenAI's strict mode can say."""

    colour: Literal["red", "blue"]
    unit: Literal["cm", "m"]
