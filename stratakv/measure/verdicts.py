"""What a row says against the reference profile, in words; and which rows no other row beats.

Words come from two things alone: the paired interval of the KLD difference, and bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from stratakv.measure.intervals import MIN_BLOCKS

Kind = Literal["reference", "baseline", "better", "worse", "no difference shown", "undecided"]


def judge(row: Mapping[str, Any], reference: Mapping[str, Any], *, is_reference: bool) -> tuple[Kind, str]:
    """The kind of verdict and its sentence, for a row with kld_diff and kld_diff_ci95 against the reference row.

    An interval that contains 0 shows no difference, however large the difference is.
    """
    if is_reference:
        return "reference", "reference"
    cost = bytes_in_words(row["bytes_per_token"], reference["bytes_per_token"])
    if row["baseline"]:
        return "baseline", f"baseline: KLD is measured against it, {cost}"
    interval = row["kld_diff_ci95"]
    size = kld_in_words(row["kld_diff"], interval, reference["kld_mean"])
    if interval is None:
        return "undecided", f"undecided: fewer than {MIN_BLOCKS} contexts give no interval, {size} {cost}"
    low, high = interval
    kind: Kind = "better" if high < 0 else "worse" if low > 0 else "no difference shown"
    return kind, f"{kind}: {size} {cost}"


def far_in_words(row: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """'far: better, KLD -34 % [-40, -27]' against the reference row; '' where nothing was measured or nothing is judged."""
    far = row.get("far")
    if not far or far["verdict_kind"] in ("reference", "baseline"):
        return ""
    size = kld_in_words(far["kld_diff"], far["kld_diff_ci95"], reference["far"]["kld_mean"])
    return f"far: {far['verdict_kind']}, {size}"


def kld_in_words(difference: float, interval: Sequence[float] | None, reference: float) -> str:
    """'KLD -76 % [-79, -72]': the difference in percent of the reference's KLD, in nats where that is 0."""
    if reference <= 0:
        ends = "" if interval is None else f" [{interval[0]:+.2g}, {interval[1]:+.2g}]"
        return f"KLD {difference:+.2g} nats{ends}"
    ends = "" if interval is None else f" [{_percent(interval[0], reference)}, {_percent(interval[1], reference)}]"
    return f"KLD {_percent(difference, reference)} %{ends}"


def bytes_in_words(size: int, reference: int) -> str:
    """'at +71 % bytes', 'at the same bytes', 'at -24 % bytes'."""
    if size == reference:
        return "at the same bytes"
    return f"at {_percent(size - reference, reference)} % bytes"


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which (bytes, KLD) points no other point beats, being no worse in both and better in one.

    Equal points don't beat each other. The f16 cache takes part like any row: with KLD 0 it is on the front as long as
    nothing reaches 0 in fewer bytes. Intervals play no role: the front is of the measured means.
    """
    return [not any(_beats(other, point) for other in points) for point in points]


def _beats(left: tuple[float, float], right: tuple[float, float]) -> bool:
    return left[0] <= right[0] and left[1] <= right[1] and left != right


def _percent(part: float, whole: float) -> str:
    """Signed, no decimals unless it would read as 0 (or as exactly -100) and isn't."""
    value = 100 * part / whole
    for decimals in (0, 1, 2):
        text = f"{value:+,.{decimals}f}"
        if value == 0 or (float(text.replace(",", "")) != 0 and not (value > -100 and text.startswith("-100"))):
            return text
    return text
