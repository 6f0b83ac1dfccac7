"""From the answers to planted needles to numbers, a JSON result "stratakv/needles/1", and its table.

Definitions: docs/measuring.md.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stratakv import __version__
from stratakv.engine.load import LoadedModel
from stratakv.machine import machine
from stratakv.measure.corpus import Text
from stratakv.measure.intervals import Interval, mean_interval
from stratakv.measure.needles import CAN, NEEDLES, Haystack, Retrieved, ask
from stratakv.measure.rows import sizes
from stratakv.measure.run import BASELINE, Progress
from stratakv.measure.table import WIDTH, align, format_warnings, labels, legend, significant
from stratakv.profile import Profile, resolve

SCHEMA = "stratakv/needles/1"
VERSION = 1
_Z = 1.959963984540054


def needles(
    loaded: LoadedModel,
    text: Text,
    haystacks: Sequence[Haystack],
    profiles: Sequence[Profile],
    *,
    seed: int,
    batch: int = 512,
    command: str = "",
    warnings: Sequence[str] = (),
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Ask for every needle with an f16 cache and each profile: JSON data, schema "stratakv/needles/1".

    haystacks: of `plant`, with its seed and warnings. Where f16 has fewer than CAN of them right nothing else is measured:
    "able" is false and "rows" empty. progress: called with (passes done, passes in all) after each pass.
    """
    baseline = resolve(BASELINE, loaded.geometry)
    others = [profile for profile in profiles if profile.storages != baseline.storages]
    total = len(haystacks) * (1 + len(others))
    step = _counter(progress, total)
    reference = ask(loaded, baseline, haystacks, batch=batch, progress=step)
    able = bool(reference.right.mean() >= CAN)
    rows = []
    if able:
        answers = [reference, *(ask(loaded, each, haystacks, batch=batch, progress=step) for each in others)]
        rows = [
            _row(profile, each, reference, haystacks)
            for profile, each in zip([baseline, *others], answers, strict=True)
        ]
    right = f"{int(reference.right.sum())} of {len(reference.right)} needles right"
    words = (
        f"{loaded.name} has {right} with an f16 cache"
        if able
        else f"no numbers: {loaded.name} can't do this, it has {right} with an f16 cache, and at least {CAN:.0%} is needed"
    )
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "stratakv": __version__,
        "model": {"name": loaded.name, "fingerprint": loaded.fingerprint},
        "text": {"name": text.name, "sha256": text.sha256},
        "context": len(haystacks[0].ids),
        "chunk": min(batch, len(haystacks[0].ids)),
        "chunks": len(haystacks),
        "seed": seed,
        "compute_dtype": dtype,
        "command": command,
        "machine": machine(),
        "warnings": [*loaded.warnings, *warnings],
        "needles": [
            {"chunk": chunk, "depth": each.depth, "key": each.key, "value": each.number}
            for chunk, haystack in enumerate(haystacks)
            for each in haystack.questions
        ],
        "able": able,
        "words": words,
        "rows": rows,
    }


def format_needles(data: Mapping[str, Any]) -> str:
    """The whole of a "stratakv/needles/1" for a terminal of 120 columns."""
    lines = textwrap.wrap(
        f"{data['model']['name']} on {data['text']['name']}: {data['chunks']} contexts of {data['context']:,} tokens, "
        f"{NEEDLES} needles each at 10 to 90 % of the text, {data['chunk']} tokens a forward call, {data['compute_dtype']}",
        WIDTH,
    )
    lines += textwrap.wrap(data["words"], WIDTH)
    if data["rows"]:
        label = labels([row["name"] for row in data["rows"]])
        cells = [["profile", "bpv", "right [95 %]", "-log p [95 %]", "more than f16 [95 %]", "margin", "first", "lost"]]
        for row in data["rows"]:
            low, high = row["right_ci95"]
            cells.append(
                [
                    label[row["name"]],
                    f"{row['bpv']:.3f}",
                    f"{row['right']:.0%} [{low:.0%}, {high:.0%}]",
                    significant(row["nll"]) + _ends(row["nll_ci95"]),
                    f"{row['nll_diff']:+.3f}{_ends(row['nll_diff_ci95'], '+.3f')}",
                    f"{row['margin']:.2f}",
                    f"{row['ranked_first']:.0%}",
                    str(row["lost"]),
                ]
            )
        lines += ["", *align(cells, left=(2, 3, 4)), ""]
        lines += textwrap.wrap(
            "right: greedy text is the value. -log p: of the whole value, nats. margin: nats to the best other planted value; "
            "first: none of them is likelier. lost: right with f16 and wrong here. Intervals are over needles.",
            WIDTH,
        )
        lines += ["", "right by depth, in percent of the text:"]
        depths = sorted({each["depth"] for each in data["needles"]})
        table = [["profile", *map(str, depths)]]
        table += [[label[row["name"]], *(f"{each:.0%}" for each in row["right_by_depth"])] for row in data["rows"]]
        lines += align(table, left=())
        lines += legend(label)
    return "\n".join([*lines, *format_warnings(data["warnings"])])


def share_interval(hits: int, of: int) -> Interval:
    """The 95 % interval of a share: Wilson's (1927), which is right near 0 and 1 too."""
    p = hits / of
    middle = (p + _Z**2 / (2 * of)) / (1 + _Z**2 / of)
    half = _Z / (1 + _Z**2 / of) * math.sqrt(p * (1 - p) / of + _Z**2 / (4 * of**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _row(profile: Profile, answers: Retrieved, f16: Retrieved, haystacks: Sequence[Haystack]) -> dict[str, Any]:
    depth = np.array([question.depth for haystack in haystacks for question in haystack.questions])
    more = answers.nll - f16.nll
    return {
        "name": profile.name,
        "profile": [list(pair) for pair in profile.pairs],
        "spans": [each.to_json() for each in profile.spans],
        **sizes(profile, len(haystacks[0].ids)),
        "allocated_bytes": answers.allocated,
        "right": float(answers.right.mean()),
        "right_ci95": list(share_interval(int(answers.right.sum()), len(answers.right))),
        "right_by_depth": [float(answers.right[depth == each].mean()) for each in sorted(set(depth.tolist()))],
        "lost": int((f16.right & ~answers.right).sum()),
        "won": int((answers.right & ~f16.right).sum()),
        "nll": float(answers.nll.mean()),
        "nll_ci95": _json(mean_interval(answers.nll)),
        "nll_diff": float(more.mean()),
        "nll_diff_ci95": _json(mean_interval(more)),
        "margin": float(answers.margin.mean()),
        "margin_ci95": _json(mean_interval(answers.margin)),
        "ranked_first": float((answers.margin > 0).mean()),
        "right_per_needle": answers.right.tolist(),
        "nll_per_needle": answers.nll.tolist(),
        "margin_per_needle": answers.margin.tolist(),
        "seconds": answers.seconds,
        "warnings": list(profile.warnings),
    }


def _counter(progress: Progress, total: int) -> Callable[[], None]:
    done = 0

    def step() -> None:
        nonlocal done
        progress(done := done + 1, total)

    return step


def _json(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _ends(interval: Sequence[float] | None, form: str | None = None) -> str:
    if interval is None:
        return ""
    low, high = (significant(end) if form is None else format(end, form) for end in interval)
    return f" [{low}, {high}]"
