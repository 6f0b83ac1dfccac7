"""`stratakv bench generate`: tokens per second and peak memory of whole models by cache, each in a process of its own."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from stratakv.bench.generate.goals import goals
from stratakv.bench.generate.shapes import (
    FILE_TYPES,
    LLAMA_SHAPE,
    QWEN3_SHAPE,
    quantized_shape,
    qwen3_config,
    write_random_gguf,
)
from stratakv.bench.generate.worker import DYNAMIC, quantized_caches
from stratakv.bench.peers import llama as llama_cpp
from stratakv.bench.result import Report, quiet, result
from stratakv.bench.timing import load_average, spread
from stratakv.bench.worker import Worker
from stratakv.engine.describe import describe_model
from stratakv.errors import UserError
from stratakv.kernels.choice import kernel_name
from stratakv.profile import resolve
from stratakv.profile.geometry import LayerGeometry, ModelGeometry

SCHEMA = "stratakv/bench-generate/1"
PROFILES = ("f16", "q8_0", "turbo4", "turbo3", "mode1", "mode5", "mode7", "edges3")
QUANTIZED = tuple(f"{shape}-{kind}" for shape in (QWEN3_SHAPE, LLAMA_SHAPE) for kind in FILE_TYPES)
_LLAMA = "llama.cpp "


@dataclass(frozen=True)
class GenerateSettings:
    """What to measure. models: sources, QWEN3_SHAPE, or QUANTIZED shapes; contexts: tokens; rounds: processes a row, taking
    turns; seconds: of decoding in each; prefill: tokens of a prompt that is timed too, at the first context, 0: none;
    transformers: also transformers' own caches; llama_python: an interpreter with llama-cpp-python, or None; spans: what is said
    after a profile's text for a row more with spans, whose steps are compared with those without, in turn."""

    models: tuple[str, ...] = ("embedded", QWEN3_SHAPE)
    contexts: tuple[int, ...] = (1024, 8192, 32768)
    profiles: tuple[str, ...] = PROFILES
    threads: int = field(default_factory=torch.get_num_threads)
    seconds: float = 5.0
    rounds: int = 1
    prefill: int = 0
    transformers: bool = True
    llama_python: str | None = None
    spans: str = ""

    @property
    def caches(self) -> tuple[str, ...]:
        """Of the profiles, with and without spans."""
        return tuple(
            each for name in self.profiles for each in (name, *([f"{name}; {self.spans}"] if self.spans else []))
        )


def bench_generate(settings: GenerateSettings, *, command: str = "", report: Report = quiet) -> dict[str, Any]:
    """Measure; returns the data of `--json`, schema "stratakv/bench-generate/1". report: called with a line for each process.

    Raises UserError for a model or a profile that can't be, before anything runs.
    """
    files = {model: _check(model, settings.caches) for model in settings.models}
    if settings.llama_python is None and (asked := [model for model in settings.models if model in QUANTIZED]):
        raise UserError(f"{asked[0]} is quantized by llama.cpp: pip install 'stratakv[gguf]', or give --llama-python")
    load = load_average()
    quantized = quantized_caches()
    rows: list[dict[str, Any]] = []
    warnings: list[str] = []
    with ExitStack() as stack:
        for model, gguf in files.items():
            if settings.llama_python and model == QWEN3_SHAPE:
                gguf = Path(stack.enter_context(tempfile.TemporaryDirectory())) / f"{model}.gguf"
                report(f"writing {model} for llama.cpp")
                write_random_gguf(gguf, qwen3_config())
            elif model in QUANTIZED:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                report(f"writing {model}, quantized by llama.cpp")
                gguf = _write_quantized(settings, model, folder)
            for context in settings.contexts:
                caches = [*([DYNAMIC, *quantized] if settings.transformers else []), *settings.caches]
                if settings.llama_python and gguf is not None:
                    caches += [_LLAMA + type_ for type_ in llama_cpp.TYPES]
                rows += _rows(settings, model, gguf, context, caches, report, warnings)
            if model in QUANTIZED and gguf is not None:
                gguf.unlink()
    measured = {
        "kernel": kernel_name(),
        "threads": settings.threads,
        "rows": rows,
        "goals": goals(rows),
    }
    return result(SCHEMA, measured, command=command, load=load, warnings=warnings, notes=_notes(settings, quantized))


def _check(model: str, profiles: tuple[str, ...]) -> Path | None:
    """Refuse what can't be before anything runs; the model's GGUF file, if it has one."""
    gguf: Path | None = None
    if quantized := quantized_shape(model):
        geometry = _shape_geometry(model, quantized[1])
    elif model == QWEN3_SHAPE:
        geometry = _shape_geometry(model, qwen3_config())
    else:
        description = describe_model(model)
        geometry, gguf = description.geometry, description.path if description.gguf else None
    for profile in profiles:
        resolve(profile, geometry)
    return gguf


def _write_quantized(settings: GenerateSettings, model: str, folder: Path) -> Path:
    """The shape's random weights as llama.cpp's own llama_model_quantize writes them."""
    shape = quantized_shape(model)
    assert shape is not None and settings.llama_python is not None
    architecture, config, file_type = shape
    plain, target = folder / "bf16.gguf", folder / f"{model}.gguf"
    write_random_gguf(plain, config, architecture)
    with llama_cpp.llama_worker(settings.llama_python) as worker:
        worker.ask(do="quantize", model=str(plain), to=str(target), file_type=file_type, threads=settings.threads)
    plain.unlink()
    return target


def _shape_geometry(name: str, config: dict[str, Any]) -> ModelGeometry:
    dims, heads = (config["head_dim"], config["head_dim"]), config["num_key_value_heads"]
    layers = tuple(
        LayerGeometry(index, index, "full", dims, heads, config["num_attention_heads"], None, None)
        for index in range(config["num_hidden_layers"])
    )
    return ModelGeometry(name, layers, config["max_position_embeddings"])


def _rows(
    settings: GenerateSettings,
    model: str,
    gguf: Path | None,
    context: int,
    caches: list[str],
    report: Report,
    warnings: list[str],
) -> list[dict[str, Any]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(settings.rounds):
        for cache in caches:
            report(f"{model}, {context} tokens, {cache}")
            try:
                if cache.startswith(_LLAMA):
                    run = _run_llama(settings, gguf, cache.removeprefix(_LLAMA), context)
                else:
                    source = str(gguf) if model in QUANTIZED else model
                    run = _run(settings, source, model, cache, context)
            except UserError as error:
                warnings.append(f"{model}, {context} tokens, {cache}: not measured: {error}")
                continue
            found.setdefault(cache, []).append(run)
            report(f"  {1 / median(run['seconds']):.1f} tokens/s{_prompt_speed(settings, run)}")
    rows = []
    for cache, runs in found.items():
        times = spread([value for run in runs for value in run.pop("seconds")])
        prompts = [run.pop("prefill_seconds") for run in runs]
        peaks = [run["peak_bytes"] for run in runs if run["peak_bytes"] is not None]
        if spans := [run["spans"] for run in runs if "spans" in run]:
            runs[0]["spans"] = {
                **spans[0],
                "ratio": median(each["ratio"] for each in spans),
                "page_tokens": [token for each in spans for token in each["page_tokens"]],
            }
        row = {"model": model, "cache": cache, "context": context, **runs[0], "peak_bytes": max(peaks, default=None)}
        prefill = None if None in prompts else settings.prefill / median(prompts)
        row |= {
            "tokens_per_second": 1e3 / times["ms"],
            **times,
            "prefill_tokens": settings.prefill if prefill else None,
        }
        rows.append({**row, "prefill_tokens_per_second": prefill, "peer": _peer(cache)})
    return rows


def _peer(cache: str) -> str | None:
    if cache == DYNAMIC or cache.startswith("QuantizedCache"):
        return "transformers"
    return "llama.cpp" if cache.startswith(_LLAMA) else None


def _prompt(settings: GenerateSettings, cache: str, context: int) -> int:
    """Tokens of the prompt to time first; 0: none. llama.cpp takes minutes over quantized caches."""
    slow = cache.startswith("QuantizedCache") or cache in (_LLAMA + "q8_0", _LLAMA + "q4_0")
    return settings.prefill if context == settings.contexts[0] and not slow else 0


def _prompt_speed(settings: GenerateSettings, run: dict[str, Any]) -> str:
    seconds = run["prefill_seconds"]
    return f", prompt {settings.prefill / seconds:.0f} tokens/s" if seconds else ""


def _run(settings: GenerateSettings, source: str, model: str, cache: str, context: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "stratakv.bench.generate.worker"]
    with Worker(command, f"{model} with {cache}") as worker:
        loaded = worker.ask(do="load", model=source, threads=settings.threads)
        prefill = None
        if tokens := _prompt(settings, cache, context):
            prefill = worker.ask(do="prefill", cache=cache, tokens=tokens)["seconds"]
        worker.reset_peak()
        worker.ask(do="fill", cache=cache, context=context)
        answer = worker.ask(do="decode", seconds=settings.seconds)
        found = {**loaded, **answer, "prefill_seconds": prefill, "peak_bytes": worker.peak_bytes()}
        if settings.spans and cache.endswith("; " + settings.spans):
            without = cache.removesuffix("; " + settings.spans)
            found["spans"] = {"without": without, **worker.ask(do="beside", cache=without, seconds=settings.seconds)}
        return found


def _run_llama(settings: GenerateSettings, gguf: Path | None, type_: str, context: int) -> dict[str, Any]:
    assert gguf is not None and settings.llama_python is not None
    with llama_cpp.llama_worker(settings.llama_python) as worker:
        prefill = None
        if tokens := _prompt(settings, _LLAMA + type_, context):
            request = {"model": str(gguf), "type": type_, "tokens": tokens, "threads": settings.threads}
            prefill = worker.ask(do="prefill", **request)["seconds"]
        steps = llama_cpp.steps(worker, gguf, (type_,), [context], settings.threads)
        worker.reset_peak()
        (step,) = steps.values()
        for turn in range(3):
            step(turn)
        times: list[float] = []
        while len(times) < 3 or (len(times) < 200 and sum(times) < settings.seconds):
            times.append(step(len(times)))
        return {
            "weight_bytes": gguf.stat().st_size,
            "dtype": "as in the file",
            "seconds": times,
            "cache_bytes": None,
            "resident_weights": None,
            "prefill_seconds": prefill,
            "peak_bytes": worker.peak_bytes(),
        }


def _notes(settings: GenerateSettings, quantized: list[str]) -> Iterator[str]:
    yield (
        "the context is filled with random states (llama.cpp: the state of 512 tokens again and again) instead of a prompt; then "
        "greedy tokens are decoded one by one; medians over tokens"
    )
    yield "peak: most resident memory while filling and decoding, weights and libraries included (Linux)"
    yield "contexts may exceed what a model was trained for: times say nothing about quality"
    if QWEN3_SHAPE in settings.models:
        yield f"{QWEN3_SHAPE}: random weights in bf16, Qwen3-0.6B's config"
    if any(model in QUANTIZED for model in settings.models):
        yield (
            "shapes with q4_k_m or q8_0: random weights, quantized by llama.cpp's llama_model_quantize; ours run in float32 "
            "with the file's blocks mapped, llama.cpp as it comes (it repacks some types into memory of its own)"
        )
    if settings.transformers and len(quantized) < 2:
        yield "transformers' QuantizedCache with integers was not measured: it needs optimum-quanto or hqq"
    if settings.llama_python is None:
        yield "llama.cpp was not measured: pip install llama-cpp-python, or give --llama-python"
