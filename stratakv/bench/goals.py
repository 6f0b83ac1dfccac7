"""A speed that was set out for, against what was measured: met, or missed by how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

Row = dict[str, Any]
Sense = Literal["at most", "at least"]


def goal(words: str, sense: Sense, limit: float, measured: float | None, unit: str) -> Row:
    """A goal as {"goal", "sense", "limit", "measured", "unit", "met", "off_by"}; met and off_by are None where measured is.

    off_by: how far a missed goal is from its limit, as a share of the limit; 0 when met.
    """
    met = off_by = None
    if measured is not None:
        met = measured <= limit if sense == "at most" else measured >= limit
        off_by = 0.0 if met else abs(measured - limit) / limit
    return {
        "goal": words,
        "sense": sense,
        "limit": limit,
        "measured": measured,
        "unit": unit,
        "met": met,
        "off_by": off_by,
    }


def goal_in_words(goal: Row) -> str:
    """'met      turbo4, ...: 1.24 ns a head row (at most 1.4)', or missed with by how much."""
    limit = f"{goal['sense']} {goal['limit']:g}"
    if goal["measured"] is None:
        return f"unknown  {goal['goal']}: not measured ({limit} {goal['unit']})"
    words = f"{goal['goal']}: {goal['measured']:.3g} {goal['unit']} ({limit})"
    return f"met      {words}" if goal["met"] else f"MISSED   {words}, by {goal['off_by']:.0%}"


def goals_in_lines(goals: Sequence[Row], head: str = "goals") -> list[str]:
    """A heading and a line a goal."""
    return [head, *(f"  {goal_in_words(each)}" for each in goals)]
