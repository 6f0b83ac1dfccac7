"""`stratakv bench tune`: seconds, passes and peak memory of tuning's gradients, each model in a process of its own."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stratakv.bench.goals import goal, goals_in_lines
from stratakv.bench.result import Report, result
from stratakv.bench.table import align, conditions
from stratakv.bench.table import notes as in_lines
from stratakv.bench.timing import load_average
from stratakv.bench.tune.shape import LAYERS, SHAPE, WIDTH, write_shape
from stratakv.bench.worker import Worker
from stratakv.engine.describe import describe_model
from stratakv.tune.effort import EFFORTS
from stratakv.tune.gradient import passes_of

SCHEMA = "stratakv/bench-tune/1"
MEMORY_GOAL = 1.5 * 2**30  # beside the weights, at 512 tokens
_FIRST = EFFORTS["first"]

Row = dict[str, Any]


@dataclass(frozen=True)
class TuneSettings:
    """model: what -m takes, or SHAPE, then of each number of `layers`. context: tokens. draws: backward passes of each."""

    model: str
    context: int
    draws: int
    threads: int
    layers: tuple[int, ...] = (4, 8)

    @property
    def contexts(self) -> int:
        """As many as `tune --effort first` takes."""
        return _FIRST.at(self.context).gradient_contexts


def bench_tune(settings: TuneSettings, *, command: str, report: Report) -> Row:
    """Measure and return a "stratakv/bench-tune/1". UserError where the model can't be read."""
    load = load_average()
    rows: list[Row] = []
    notes: list[str] = []
    if settings.model != SHAPE:
        describe_model(settings.model)
    with _files(settings, report) as files:
        for file in files:
            passes = settings.contexts * passes_of(settings.draws)
            report(f"{Path(file).stem}: {passes} forward passes of {settings.context} tokens")
            rows.append(_measured(file, settings))
    if settings.model == SHAPE:
        rows.append(_extrapolated(rows, settings.context))
        few = " and ".join(f"{row['layers']}" for row in rows[:-1])
        notes.append(
            f"{SHAPE}: random weights, no tokenizer; {LAYERS} layers are extrapolated from {few} layers, each of which was "
            "measured with the whole model's embedding and head; memory by what a layer leaves behind, its input"
        )
    notes.append("beside the weights: the process's peak, libraries included, less the bytes of the weights")
    measured = {
        "rows": rows,
        "goals": _goals(rows[-1], settings),
        "context": settings.context,
        "contexts": settings.contexts,
        "draws": settings.draws,
        "threads": settings.threads,
    }
    return result(SCHEMA, measured, command=command, load=load, notes=notes)


def format_tune(data: Row) -> str:
    """The whole of it as text."""
    cells = [
        [
            "",
            "layers",
            "passes",
            "seconds",
            "CPU seconds",
            f"seconds of `tune --effort first` ({data['rows'][0]['first_passes']} passes)",
            "weights MiB",
        ]
    ]
    cells[0].append("beside them MiB")
    for row in data["rows"]:
        beside = row["beside_weights_bytes"]
        numbers = [str(row["layers"]), str(row["passes"]), f"{row['seconds']:.1f}"]
        numbers += [f"{row['cpu_seconds']:.1f}", f"{row['first_seconds']:.0f}"]
        numbers += [_mib(row["weight_bytes"]), "" if beside is None else _mib(beside)]
        cells.append([row["name"] + (" (extrapolated)" if row["extrapolated"] else ""), *numbers])
    lines = [conditions(data, f"{data['context']} tokens"), "", *align(cells)]
    return "\n".join([*lines, "", *goals_in_lines(data["goals"]), *in_lines(data)])


@contextmanager
def _files(settings: TuneSettings, report: Report) -> Iterator[Iterator[str]]:
    """What is loaded; of a shape one file at a time lies on the disk."""
    if settings.model != SHAPE:
        yield iter([settings.model])
        return
    with tempfile.TemporaryDirectory() as folder:

        def written() -> Iterator[str]:
            for layers in settings.layers:
                path = Path(folder) / f"{SHAPE}-{layers}-layers.gguf"
                report(f"writing {path.name}")
                write_shape(path, layers)
                yield str(path)
                path.unlink()

        yield written()


def _measured(file: str, settings: TuneSettings) -> Row:
    with Worker([sys.executable, "-m", "stratakv.bench.tune.worker"], file) as worker:
        model = worker.ask(do="load", model=file, threads=settings.threads)
        worker.reset_peak()
        found = worker.ask(do="gradients", contexts=settings.contexts, context=settings.context, draws=settings.draws)
        peak = worker.peak_bytes()
    found |= {"first_passes": settings.contexts * passes_of(_FIRST.draws)}
    return _row({**model, **found}, None if peak is None else peak - model["weight_bytes"], extrapolated=False)


def _extrapolated(rows: Sequence[Row], context: int) -> Row:
    """The whole shape: time and weights on the line through the first and the last row.

    Memory is a row's peak and the inputs of the layers that it lacks, the most of them. A layer leaves nothing else behind, and
    how high the heap stands before it is trimmed differs by 250 MiB between layers, so a line through two peaks says nothing.
    """
    first, last = rows[0], rows[-1]

    def at_all(name: str) -> float:
        slope = (last[name] - first[name]) / (last["layers"] - first["layers"])
        return float(last[name] + slope * (LAYERS - last["layers"]))

    known = first["beside_weights_bytes"] is not None
    model = {
        "name": SHAPE,
        "layers": LAYERS,
        "weight_bytes": round(at_all("weight_bytes")),
        "seconds": at_all("seconds"),
        "cpu_seconds": at_all("cpu_seconds"),
    }
    inputs = 4 * context * WIDTH
    peaks = [row["beside_weights_bytes"] + (LAYERS - row["layers"]) * inputs for row in rows] if known else []
    beside = max(peaks, default=None)
    return _row({**last, **model}, beside, extrapolated=True)


def _row(found: Row, beside: int | None, *, extrapolated: bool) -> Row:
    first_seconds = found["seconds"] / found["passes"] * found["first_passes"]
    return {**found, "first_seconds": first_seconds, "beside_weights_bytes": beside, "extrapolated": extrapolated}


def _goals(row: Row, settings: TuneSettings) -> list[Row]:
    found = []
    if row["beside_weights_bytes"] is not None and settings.context <= 512:
        beside = row["beside_weights_bytes"] / 2**30
        found.append(goal("memory beside the weights", "at most", MEMORY_GOAL / 2**30, beside, "GiB"))
    if settings.model == SHAPE:
        found.append(goal("gradients of a first profile", "at most", 30.0, row["first_seconds"] / 60, "minutes"))
    return found


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f}"
