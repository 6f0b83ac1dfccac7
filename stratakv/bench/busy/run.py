"""`stratakv bench busy`: decoding and tuning beside other programs that want the cores, and llama.cpp's decoding."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from stratakv.bench.goals import goal
from stratakv.bench.peers import llama as llama_cpp
from stratakv.bench.result import Report, quiet, result
from stratakv.bench.timing import load_average
from stratakv.bench.worker import Worker
from stratakv.engine.describe import describe_model
from stratakv.errors import UserError
from stratakv.kernels.choice import kernel_name
from stratakv.profile import resolve

SCHEMA = "stratakv/bench-busy/1"
DECODE, TUNE = "stratakv decode", "stratakv tune"
_KEPT = {1: 0.55, 3: 0.3}  # share of the quiet speed, by busy processes
_SETTLE_SECONDS = 0.3
_OTHERS_ALLOWED = 0.1
_NOTES = (
    "busy: processes beside, each of which wants a core all the time",
    "tune: gradient passes, forward and backward, with the errors of two types in every layer",
)

Work = Callable[[float], tuple[int, float]]
"""For some seconds; returns tokens and seconds."""


@dataclass(frozen=True)
class Visit:
    """A case at work. others: cores that programs had which are no part of the run."""

    tokens: int
    seconds: float
    others: float

    def disturbed(self) -> str:
        """What to say where others were at work; else nothing."""
        return f" (others had {self.others:.2f} cores)" if self.others > _OTHERS_ALLOWED else ""


@dataclass(frozen=True)
class BusySettings:
    """What to measure. busy: numbers of processes that each want a core, with 0 first; context: tokens of the prompt before
    decoding, and of a tuning pass; seconds: of each visit; rounds: visits of each case; llama_python: an interpreter with
    llama-cpp-python, or None."""

    model: str = "embedded"
    profile: str = "turbo4"
    busy: tuple[int, ...] = (0, 1, 3)
    context: int = 128
    threads: int = field(default_factory=torch.get_num_threads)
    seconds: float = 2.0
    rounds: int = 2
    llama_python: str | None = None


def bench_busy(settings: BusySettings, *, command: str = "", report: Report = quiet) -> dict[str, Any]:
    """Measure; returns the data of `--json`, schema "stratakv/bench-busy/1". report: called with a line for each visit.

    Raises UserError for a model or a profile that can't be, before anything runs.
    """
    description = describe_model(settings.model)
    resolve(settings.profile, description.geometry)
    gguf = description.path if description.gguf else None
    load = load_average()
    visits: dict[tuple[str, int], list[Visit]] = {}
    with ExitStack() as stack:
        cases = _cases(settings, gguf, stack, report)
        for count in settings.busy:
            with busy_processes(count):
                for _ in range(settings.rounds):
                    for name, case in cases.items():
                        visit = _visit(case, settings.seconds)
                        visits.setdefault((name, count), []).append(visit)
                        report(f"{count} busy, {name}: {visit.tokens / visit.seconds:.1f} tokens/s{visit.disturbed()}")
    rows = _rows(visits)
    measured = {
        "kernel": kernel_name(),
        "model": settings.model,
        "profile": settings.profile,
        "context": settings.context,
        "threads": settings.threads,
        "rows": rows,
        "goals": goals(rows),
    }
    return result(SCHEMA, measured, command=command, load=load, warnings=_disturbances(visits), notes=_NOTES)


def _cases(settings: BusySettings, gguf: Path | None, stack: ExitStack, report: Report) -> dict[str, Work]:
    report(f"loading {settings.model}")
    ours = stack.enter_context(Worker([sys.executable, "-m", "stratakv.bench.busy.worker"], settings.model))
    ours.ask(do="load", model=settings.model, profile=settings.profile, threads=settings.threads)
    cases = {DECODE: _ours(ours, "decode", settings.context), TUNE: _ours(ours, "tune", settings.context)}
    if settings.llama_python and gguf is not None:
        llama = stack.enter_context(llama_cpp.llama_worker(settings.llama_python))
        steps = llama_cpp.steps(llama, gguf, llama_cpp.F16_PEERS, [settings.context], settings.threads)
        for type_, step in zip(llama_cpp.F16_PEERS, steps.values(), strict=True):
            cases[f"llama.cpp {type_}"] = _theirs(step)
    for case in cases.values():
        case(0.0)  # what is made once is made now
    return cases


def _ours(worker: Worker, what: str, context: int) -> Work:
    def case(seconds: float) -> tuple[int, float]:
        answer = worker.ask(do=what, context=context, seconds=seconds)
        return answer["count"], answer["seconds"]

    return case


def _theirs(step: Callable[[int], float]) -> Work:
    def case(seconds: float) -> tuple[int, float]:
        tokens, spent = 0, 0.0
        while tokens == 0 or spent < seconds:
            spent += step(tokens)
            tokens += 1
        return tokens, spent

    return case


def _visit(case: Work, seconds: float) -> Visit:
    began, before = time.perf_counter(), _others()
    tokens, spent = case(seconds)
    cores = (_others() - before) / (time.perf_counter() - began)
    return Visit(tokens, spent, max(0.0, cores))


def _others() -> float:
    """CPU seconds of the machine that aren't this process's or its children's."""
    machine, here = psutil.cpu_times(), psutil.Process()
    own = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    everybody = machine.user + machine.system + getattr(machine, "nice", 0.0)
    return float(everybody - sum(times.user + times.system for times in own))


def _disturbances(visits: dict[tuple[str, int], list[Visit]]) -> Iterator[str]:
    for (name, busy), each in visits.items():
        for visit in each:
            if words := visit.disturbed():
                yield f"{name} beside {busy} busy: don't quote{words}"


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Within, this many other processes want a core each, at the same priority."""
    script = "print(flush=True)\nwhile True: pass"
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            started.append(subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE))
        for process in started:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise UserError(f"a process to keep a core busy ended with exit code {process.wait()}")
        time.sleep(_SETTLE_SECONDS)
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate()


def _rows(visits: dict[tuple[str, int], list[Visit]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    quiet: dict[str, float] = {}
    for (name, busy), each in visits.items():
        speed = sum(visit.tokens for visit in each) / sum(visit.seconds for visit in each)
        if busy == 0:
            quiet[name] = speed
        rows.append(
            {
                "case": name,
                "busy": busy,
                "tokens_per_second": speed,
                "tokens_per_second_rounds": [visit.tokens / visit.seconds for visit in each],
                "others_cores": [visit.others for visit in each],
                "kept": speed / quiet[name] if name in quiet else None,
                "peer": "llama.cpp" if name.startswith("llama.cpp") else None,
            }
        )
    return rows


def goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shares of the quiet speed, and the speed beside llama.cpp's fastest, as `bench.goals.goal` gives them."""
    found = []
    for row in rows:
        if row["peer"] or not row["busy"]:
            continue
        beside = f"{row['case']} beside {row['busy']} busy"
        if row["busy"] in _KEPT:
            found.append(goal(beside, "at least", _KEPT[row["busy"]], row["kept"], "of the quiet speed"))
        theirs = [each["tokens_per_second"] for each in rows if each["peer"] and each["busy"] == row["busy"]]
        if row["case"] == DECODE:
            times = row["tokens_per_second"] / max(theirs) if theirs else None
            found.append(goal(beside, "at least", 1.0, times, "times llama.cpp's speed"))
    return found
