"""How long a user waits: from a command's start to its first line, to its end, and to a model that is ready."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from stratakv.bench.goals import goal, goals_in_lines
from stratakv.bench.result import Report, result
from stratakv.bench.table import align, conditions
from stratakv.bench.table import notes as in_lines
from stratakv.bench.timing import load_average
from stratakv.bench.worker import stop
from stratakv.engine.describe import ModelDescription, describe_model
from stratakv.errors import UserError

SCHEMA = "stratakv/bench-start/1"
_SECONDS_AT_MOST = 600.0
# From so many tokens on a tokenizer takes longer to build than the rest
_LARGE_VOCABULARY = 200_000
_HELP, _SHOW, _GENERATE, _LISTEN = "--help", "show", "ready to generate", "ready to listen"
_LLAMA = "llama-cpp-python ready"
_LLAMA_SCRIPT = "import sys; from llama_cpp import Llama; Llama(sys.argv[1], n_ctx=512, verbose=False); print('ready')"

Row = dict[str, Any]


@dataclass(frozen=True)
class StartSettings:
    """models: what -m takes; rounds: processes of each kind; llama_python: an interpreter with llama-cpp-python, or None."""

    models: tuple[str, ...]
    rounds: int
    threads: int
    llama_python: str | None = None


@dataclass(frozen=True)
class _Case:
    """A command, and what it prints when it is ready: (stream, text), None where its end is meant."""

    model: str | None
    what: str
    command: tuple[str, ...]
    ready: tuple[str, bytes] | None = None


def bench_start(settings: StartSettings, *, command: str, report: Report) -> Row:
    """Run everything and return a "stratakv/bench-start/1". UserError where a command fails."""
    load = load_average()
    models = [describe_model(model) for model in settings.models]
    cases = [_Case(None, _HELP, _ours("--help"))]
    for source, model in zip(settings.models, models, strict=True):
        cases += _cases(source, model, settings)
    found: dict[_Case, list[tuple[float, float]]] = {case: [] for case in cases}
    for turn in range(settings.rounds):
        report(f"round {turn + 1} of {settings.rounds}: {len(cases)} processes")
        for case in cases:
            found[case].append(_measured(case))
    rows = [_row(case, times) for case, times in found.items()]
    measured = {
        "rows": rows,
        "goals": _goals(rows, {model.name: _vocabulary(model) for model in models}),
        "rounds": settings.rounds,
        "threads": settings.threads,
    }
    notes = [] if settings.llama_python else ["llama-cpp-python is not installed here, or not given: left out"]
    return result(SCHEMA, measured, command=command, load=load, notes=notes)


def format_start(data: Row) -> str:
    """The whole of it as text."""
    cells = [["", "", "seconds", "fastest", "slowest", "first line"]]
    for row in data["rows"]:
        seconds = row["seconds_rounds"]
        numbers = (row["seconds"], min(seconds), max(seconds), row["first_line_seconds"])
        cells.append([row["model"] or "stratakv", row["what"], *(f"{number:.2f}" for number in numbers)])
    width = max(len(cells_[1]) for cells_ in cells)
    lines = [conditions(data, f"medians of {data['rounds']} processes"), ""]
    lines += align([[first, second.ljust(width), *rest] for first, second, *rest in cells])
    return "\n".join([*lines, "", *goals_in_lines(data["goals"]), *in_lines(data)])


def _ours(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "stratakv", *words)


def _cases(source: str, model: ModelDescription, settings: StartSettings) -> Iterator[_Case]:
    threads = ("-t", str(settings.threads))
    yield _Case(model.name, _SHOW, _ours("show", "-m", source))
    # the prompt is echoed on standard output when generation begins
    words = ("generate", "-m", source, "-p", "x", "-n", "1", "--temp", "0")
    yield _Case(model.name, _GENERATE, _ours(*words), ("stdout", b"x"))
    yield _Case(model.name, _LISTEN, _ours("serve", "-m", source, "--port", "0", *threads), ("stderr", b"listening on"))
    if settings.llama_python and model.gguf:
        python = settings.llama_python
        yield _Case(
            model.name,
            _LLAMA,
            (python, "-P", "-c", _LLAMA_SCRIPT, str(model.gguf.header.paths[0])),
            ("stdout", b"ready"),
        )


def _measured(case: _Case) -> tuple[float, float]:
    """Seconds to the first line, and to where the case is ready."""
    environment = {name: value for name, value in os.environ.items() if name != "TURBO_LAYER_ADAPTIVE"}
    started = time.perf_counter()
    process = subprocess.Popen(case.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    try:
        first, ready, said = _watch(process, case.ready, started)
    finally:
        stop(process)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
    if ready is None or (case.ready is None and process.returncode):
        last = " ".join(said.decode(errors="replace").split("\n")[-4:]).strip()
        raise UserError(f"{' '.join(case.command[2:])} ended with code {process.returncode}: {last}")
    return first if first is not None else ready, ready


def _watch(
    process: subprocess.Popen[bytes], ready: tuple[str, bytes] | None, started: float
) -> tuple[float | None, float | None, bytes]:
    """(first line, ready, all that it said); ready None where it ended or a time-out came before."""
    said = {"stdout": b"", "stderr": b""}
    first = None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, "stdout")  # type: ignore[arg-type]
        selector.register(process.stderr, selectors.EVENT_READ, "stderr")  # type: ignore[arg-type]
        while selector.get_map():
            if time.perf_counter() - started > _SECONDS_AT_MOST:
                return first, None, said["stderr"]
            for key, _ in selector.select(timeout=1):
                text = os.read(key.fd, 65536)
                now = time.perf_counter() - started
                if not text:
                    selector.unregister(key.fileobj)
                    continue
                said[key.data] += text
                first = now if first is None and b"\n" in b"".join(said.values()) else first
                if ready is not None and ready[1] in said[ready[0]]:
                    return first, now, b""
    process.wait()
    return first, time.perf_counter() - started if ready is None else None, said["stderr"]


def _row(case: _Case, times: Sequence[tuple[float, float]]) -> Row:
    seconds = [ready for _, ready in times]
    first = median(first for first, _ in times)
    return {
        "model": case.model,
        "what": case.what,
        "seconds": median(seconds),
        "seconds_rounds": seconds,
        "first_line_seconds": first,
    }


def _goals(rows: Sequence[Row], vocabularies: dict[str, int]) -> list[Row]:
    found = []
    for row in rows:
        if row["what"] == _LLAMA:
            continue
        name = f"{row['model']}: {row['what']}" if row["model"] else row["what"]
        large = vocabularies.get(row["model"] or "", 0) >= _LARGE_VOCABULARY
        limit = {_HELP: 0.1, _SHOW: 2.5}.get(row["what"], 10.0 if large else 6.0)
        found.append(goal(name, "at most", limit, row["seconds"], "s"))
    first = max((row["first_line_seconds"] for row in rows if row["what"] != _LLAMA), default=None)
    found.append(goal("the first line of any command", "at most", 1.0, first, "s"))
    return found


def _vocabulary(model: ModelDescription) -> int:
    return int(getattr(model.config.get_text_config(decoder=True), "vocab_size", 0) or 0)
