"""`stratakv bench attention`, `generate`, `serve`, `start` and `busy`: speed on this machine, beside others'."""

from __future__ import annotations

import argparse
from typing import Any

from stratakv.cli.model_option import add_model_option
from stratakv.cli.recorded import command_line, set_run

_ATTENTION = "decode attention, prefill and encoding beside torch's attention and llama.cpp's"
_GENERATE = "tokens per second and peak memory of whole models, by cache"
_SERVE = "throughput, time to first token and between tokens of `stratakv serve` and llama-cpp-python's server"
_START = "seconds to the first line and until a model is ready, beside llama-cpp-python's load"
_BUSY = "decoding and tuning beside other programs that want the cores, and llama.cpp's decoding"


def add_parser(commands: Any) -> None:
    """Register the command and its subcommands."""
    parser = commands.add_parser(
        "bench",
        help="speed on this machine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    attention = kinds.add_parser("attention", help=_ATTENTION, description=_ATTENTION)
    attention.add_argument(
        "-c", "--contexts", metavar="N,...", default="1k,8k,32k,128k", help="tokens of context (1k,8k,32k,128k)"
    )
    attention.add_argument("--groups", metavar="N,...", default="4,1,8", help="query heads a kv head (4,1,8)")
    attention.add_argument(
        "--types",
        metavar="TYPES,...",
        default="f16,q8_0,turbo4,turbo3,turbo2,q8_0/turbo4,tcq4,tcq3",
        help="TYPE or K/V (f16,q8_0,turbo4,turbo3,turbo2,q8_0/turbo4,tcq4,tcq3)",
    )
    attention.add_argument("--kv-heads", type=int, default=8, metavar="N", help="kv heads (8)")
    attention.add_argument("--head-dim", type=int, default=128, metavar="N", help="values of a vector (128)")
    attention.add_argument(
        "--parts", metavar="PART,...", default="decode,prefill,encode", help="of decode, prefill, encode (all)"
    )
    attention.add_argument(
        "--prefill",
        metavar="N[+Q],...",
        default="8k,32k+512",
        help="prompts of N tokens, or Q tokens on top of N (8k,32k+512)",
    )
    attention.add_argument(
        "--rotate-mib", type=int, default=256, metavar="N", help="MiB of caches that a case reads in turn (256)"
    )
    attention.add_argument("--plot", metavar="FILE", help="draw the decode steps, .png or .svg")
    attention.add_argument(
        "--device", default="cpu", help="cpu, or cuda or cuda:N: CUDA events, beside torch's SDPA over dense bf16 (cpu)"
    )
    attention.add_argument("--batch", metavar="N,...", default="1,8,64", help="sequences at once, on a GPU (1,8,64)")
    attention.add_argument(
        "--predict",
        action="store_true",
        help="only what a GPU's kernel would need, from its machine code: nothing is measured",
    )
    _add_common(attention, seconds=10.0, what="each context and group")
    set_run(attention, run_attention, outputs=("json", "plot"))
    generate = kinds.add_parser("generate", help=_GENERATE, description=_GENERATE)
    generate.add_argument(
        "-m",
        "--models",
        metavar="MODEL,...",
        default="embedded,qwen3-0.6b-shape",
        help="GGUF file, directory, hub name, 'embedded', or random weights: 'qwen3-0.6b-shape' in bf16, and quantized: "
        "'qwen3-0.6b-shape-q4_k_m', '...-q8_0', 'llama-3.2-1b-shape-...' (embedded,qwen3-0.6b-shape)",
    )
    generate.add_argument(
        "-c", "--contexts", metavar="N,...", default="1k,8k,32k", help="tokens of context (1k,8k,32k)"
    )
    generate.add_argument(
        "--profile",
        action="append",
        metavar="PROFILE",
        help="repeat it for several (f16, q8_0, turbo4, turbo3, mode1, mode5, mode7, edges3)",
    )
    generate.add_argument("--rounds", type=int, default=1, metavar="N", help="processes a row, in turns (1)")
    generate.add_argument(
        "--prefill", metavar="N", help="time a prompt of N tokens too, at the first context (not timed)"
    )
    generate.add_argument(
        "--no-transformers", action="store_true", help="leave transformers' own caches out, for the time they take"
    )
    generate.add_argument("--plot", metavar="FILE", help="draw tokens per second over context, .png or .svg")
    _add_common(generate, seconds=5.0, what="the tokens of each process")
    set_run(generate, run_generate, outputs=("json", "plot"))
    serve = kinds.add_parser("serve", help=_SERVE, description=_SERVE)
    add_model_option(serve, required=False, default="embedded")
    serve.add_argument("-f", "--file", metavar="TEXT", help="a UTF-8 text to cut prompts from (the embedded one)")
    serve.add_argument(
        "--profile", action="append", metavar="PROFILE", help="repeat it for several, f16 first (f16, turbo4)"
    )
    serve.add_argument("--clients", metavar="N,...", default="1,4,16", help="clients at once (1,4,16)")
    serve.add_argument("--each", type=int, default=2, metavar="N", help="requests of each client in a round (2)")
    serve.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds in which servers take turns (3)")
    serve.add_argument("--rate", type=float, default=2.0, metavar="R", help="open loop: requests a second (2)")
    serve.add_argument("--requests", type=int, default=16, metavar="N", help="open loop: requests, 0: none (16)")
    serve.add_argument("--seed", type=int, default=1, metavar="N", help="of prompts and arrivals (1)")
    serve.add_argument("--prefix", type=int, default=3968, metavar="N", help="tokens of a shared beginning (3968)")
    serve.add_argument(
        "--sequences",
        type=int,
        default=8,
        metavar="N",
        help="count sequences of 2k tokens in the memory of N of f16 (8)",
    )
    serve.add_argument("-t", "--threads", type=int, metavar="N", help="threads of every server (torch's number)")
    serve.add_argument("--llama-python", metavar="PATH", help="an interpreter that has llama-cpp-python[server]")
    serve.add_argument("--json", metavar="FILE", help="write the result as JSON, '-': to standard output")
    set_run(serve, run_serve, outputs=("json",))
    start = kinds.add_parser("start", help=_START, description=_START)
    start.add_argument(
        "-m", "--models", metavar="MODEL,...", default="embedded", help="GGUF file, directory, hub name, 'embedded'"
    )
    start.add_argument("--rounds", type=int, default=3, metavar="N", help="processes of each kind, in turns (3)")
    start.add_argument("-t", "--threads", type=int, metavar="N", help="threads of the server (torch's number)")
    start.add_argument(
        "--llama-python", metavar="PATH", help="an interpreter that has llama-cpp-python (this one, if it has)"
    )
    start.add_argument("--json", metavar="FILE", help="write the result as JSON, '-': to standard output")
    set_run(start, run_start, outputs=("json",))
    busy = kinds.add_parser("busy", help=_BUSY, description=_BUSY)
    add_model_option(busy, required=False, default="embedded")
    busy.add_argument("--profile", default="turbo4", metavar="PROFILE", help="of the cache (turbo4)")
    busy.add_argument("--busy", default="1,3", metavar="N,...", help="busy processes, after none (1,3)")
    busy.add_argument("-c", "--context", default="128", metavar="N", help="tokens of prompts and tuning passes (128)")
    busy.add_argument("--rounds", type=int, default=2, metavar="N", help="visits of each case, in turns (2)")
    _add_common(busy, seconds=2.0, what="each visit")
    set_run(busy, run_busy, outputs=("json",))
    usages = (attention, generate, serve, start, busy)
    parser.epilog = "".join(each.format_usage() for each in usages)


def _add_common(parser: argparse.ArgumentParser, *, seconds: float, what: str) -> None:
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="threads of every side (torch's number)")
    parser.add_argument(
        "--seconds", type=float, default=seconds, metavar="S", help=f"time for {what}, at least ({seconds:g})"
    )
    parser.add_argument(
        "--llama-python", metavar="PATH", help="an interpreter that has llama-cpp-python (this one, if it has)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON, '-': to standard output")


def run_attention(args: argparse.Namespace) -> int:
    """Run `bench attention`."""
    from stratakv.bench.attention.caches import Shape
    from stratakv.bench.attention.plot import plot_attention
    from stratakv.bench.attention.run import AttentionSettings, bench_attention
    from stratakv.bench.attention.table import format_attention
    from stratakv.bench.peers.llama import llama_python
    from stratakv.cli.measuring_options import emit, say
    from stratakv.picture import check_plot_path

    _check_outputs(args.json, args.plot)
    if args.plot:
        check_plot_path(args.plot)
    shape = Shape(_positive(args.kv_heads, "--kv-heads"), _positive(args.head_dim, "--head-dim"))
    if args.predict or args.device != "cpu":
        return _run_on_a_gpu(args, shape)
    settings = AttentionSettings(
        contexts=_sizes(args.contexts, "-c"),
        groups=_sizes(args.groups, "--groups"),
        pairs=_pairs(args.types, shape.head_dim),
        threads=_threads(args.threads),
        parts=_parts(args.parts),
        shape=shape,
        prefill=tuple(_prefill(word) for word in _words(args.prefill, "--prefill")),
        seconds=args.seconds,
        rotate_bytes=_positive(args.rotate_mib, "--rotate-mib") * 2**20,
        llama_python=llama_python(args.llama_python),
    )
    data = bench_attention(settings, command=_command(args, settings.threads), report=say)
    emit(format_attention(data), data, args.json)
    if args.plot:
        plot_attention(data, args.plot)
        say(f"wrote {args.plot}")
    return 0


def _run_on_a_gpu(args: argparse.Namespace, shape: Any) -> int:
    """`bench attention` with --predict or another --device."""
    from stratakv.bench.attention.gpu import GpuSettings, bench_gpu, format_gpu, gpu
    from stratakv.bench.attention.predict import format_predicted, predict
    from stratakv.cli.measuring_options import emit, say
    from stratakv.errors import UserError

    if args.plot:
        raise UserError("--plot draws what was measured on a CPU: leave out --device and --predict, or --plot")
    pairs, groups = _pairs(args.types, shape.head_dim), _sizes(args.groups, "--groups")[0]
    if args.predict:
        data = predict(shape, pairs, groups)
        emit(format_predicted(data), data, args.json)
        return 0
    device = gpu(args.device)
    settings = GpuSettings(
        pairs,
        shape,
        batches=_sizes(args.batch, "--batch"),
        contexts=_sizes(args.contexts, "-c"),
        groups=groups,
        seconds=args.seconds,
        rotate_bytes=_positive(args.rotate_mib, "--rotate-mib") * 2**20,
    )
    data = bench_gpu(settings, device, command=_command(args, _threads(args.threads)), report=say)
    emit(format_gpu(data), data, args.json)
    return 0


def run_generate(args: argparse.Namespace) -> int:
    """Run `bench generate`."""
    from stratakv.bench.generate.plot import plot_generate
    from stratakv.bench.generate.run import PROFILES, GenerateSettings, bench_generate
    from stratakv.bench.generate.table import format_generate
    from stratakv.bench.peers.llama import llama_python
    from stratakv.cli.measuring_options import emit, say
    from stratakv.picture import check_plot_path

    _check_outputs(args.json, args.plot)
    if args.plot:
        check_plot_path(args.plot)
    settings = GenerateSettings(
        models=_words(args.models, "-m"),
        contexts=_sizes(args.contexts, "-c"),
        profiles=tuple(args.profile or PROFILES),
        threads=_threads(args.threads),
        seconds=args.seconds,
        rounds=_positive(args.rounds, "--rounds"),
        prefill=_size(args.prefill, "--prefill") if args.prefill else 0,
        transformers=not args.no_transformers,
        llama_python=llama_python(args.llama_python),
    )
    command = _command(args, settings.threads, profile=settings.profiles)
    data = bench_generate(settings, command=command, report=say)
    emit(format_generate(data), data, args.json)
    if args.plot:
        plot_generate([data], args.plot)
        say(f"wrote {args.plot}")
    return 0


def run_serve(args: argparse.Namespace) -> int:
    """Run `bench serve`."""
    import importlib.util

    from stratakv.assets import tuning_text
    from stratakv.cli.measuring_options import emit, say
    from stratakv.errors import UserError

    if missing := [name for name in ("fastapi", "httpx", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise UserError(f"bench serve needs {', '.join(missing)}: pip install 'stratakv[serve]'")
    from stratakv.bench.peers.llama import llama_python
    from stratakv.bench.serve.run import ServeSettings, bench_serve
    from stratakv.bench.serve.table import format_serve

    _check_outputs(args.json, None)
    if args.rate <= 0 or not 0 <= args.requests <= 1000:
        raise UserError(f"--rate {args.rate:g} --requests {args.requests}: a rate above 0, and 0 to 1000 requests")
    if not 0 <= args.sequences <= 64:
        raise UserError(f"--sequences {args.sequences}: it must be 0 to 64")
    clients = _sizes(args.clients, "--clients")
    if max(clients) > 256 or max(clients) * args.each * args.rounds > 10_000:
        raise UserError(f"--clients {args.clients}: 256 at most, and 10,000 requests of --each and --rounds together")
    settings = ServeSettings(
        args.model,
        args.file or str(tuning_text()),
        tuple(args.profile or ("f16", "turbo4")),
        clients=clients,
        each=_positive(args.each, "--each"),
        rounds=_positive(args.rounds, "--rounds"),
        rate=args.rate,
        count=args.requests,
        prefix=args.prefix,
        sequences=args.sequences,
        threads=_threads(args.threads),
        seed=args.seed,
        llama_python=llama_python(args.llama_python) if args.llama_python else None,
    )
    command = _command(args, settings.threads, profile=settings.profiles)
    data = bench_serve(settings, command=command, report=say)
    emit(format_serve(data), data, args.json)
    return 0


def run_start(args: argparse.Namespace) -> int:
    """Run `bench start`."""
    from stratakv.bench.peers.llama import llama_python
    from stratakv.bench.start import StartSettings, bench_start, format_start
    from stratakv.cli.measuring_options import emit, say

    _check_outputs(args.json, None)
    settings = StartSettings(
        _words(args.models, "-m"),
        _positive(args.rounds, "--rounds"),
        _threads(args.threads),
        llama_python(args.llama_python),
    )
    data = bench_start(settings, command=_command(args, settings.threads), report=say)
    emit(format_start(data), data, args.json)
    return 0


def run_busy(args: argparse.Namespace) -> int:
    """Run `bench busy`."""
    from stratakv.bench.busy.run import BusySettings, bench_busy
    from stratakv.bench.busy.table import format_busy
    from stratakv.bench.peers.llama import llama_python
    from stratakv.cli.measuring_options import emit, say
    from stratakv.errors import UserError

    _check_outputs(args.json, None)
    counts = _sizes(args.busy, "--busy")
    if max(counts) > 64:
        raise UserError(f"--busy {args.busy}: 64 processes at most")
    settings = BusySettings(
        args.model,
        args.profile,
        busy=(0, *sorted(set(counts))),
        context=_size(args.context, "-c"),
        threads=_threads(args.threads),
        seconds=args.seconds,
        rounds=_positive(args.rounds, "--rounds"),
        llama_python=llama_python(args.llama_python),
    )
    data = bench_busy(settings, command=_command(args, settings.threads), report=say)
    emit(format_busy(data), data, args.json)
    return 0


def _command(args: argparse.Namespace, threads: int, **settled: Any) -> str:
    """The line of a result: with the threads that were chosen, without the path of somebody's Python."""
    python = None if args.llama_python is None else "PYTHON"
    return command_line(args, threads=threads, llama_python=python, **settled)


def _check_outputs(*paths: str | None) -> None:
    from stratakv.files import check_writable

    for path in paths:
        if path and path != "-":
            check_writable(path)


def _words(text: str, option: str) -> tuple[str, ...]:
    from stratakv.errors import UserError

    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise UserError(f"{option} {text!r}: give at least one, several with commas between them")
    return words


def _sizes(text: str, option: str) -> tuple[int, ...]:
    return tuple(_size(word, option) for word in _words(text, option))


def _size(word: str, option: str) -> int:
    """32768, or 32k for it."""
    from stratakv.errors import UserError

    digits = word[:-1] if word[-1:] in ("k", "K") else word
    if not (digits.isascii() and digits.isdigit() and int(digits) > 0):
        raise UserError(f"{option} {word!r}: a positive number, or one with k for 1,024 of it, such as 32k")
    return int(digits) * (1 if digits == word else 1024)


def _prefill(word: str) -> tuple[int, int]:
    """(tokens, queries): 8k is a prompt, 32k+512 a chunk on top."""
    before, plus, chunk = word.partition("+")
    tokens = _size(before, "--prefill")
    queries = _size(chunk, "--prefill") if plus else tokens
    return (tokens + queries if plus else tokens), queries


def _pairs(text: str, head_dim: int) -> tuple[tuple[str, str], ...]:
    from stratakv.kvtypes import kv_type
    from stratakv.profile.rules import parse_pair

    pairs = tuple(parse_pair(word) for word in _words(text, "--types"))
    for name in (name for pair in pairs for name in pair):
        kv_type(name).check(head_dim)
    return pairs


def _parts(text: str) -> tuple[str, ...]:
    from stratakv.errors import UserError

    parts = _words(text, "--parts")
    if unknown := [part for part in parts if part not in ("decode", "prefill", "encode")]:
        raise UserError(f"--parts {unknown[0]}: allowed are decode, prefill, encode")
    return parts


def _threads(given: int | None) -> int:
    import torch

    return torch.get_num_threads() if given is None else _positive(given, "-t")


def _positive(number: int, option: str) -> int:
    from stratakv.errors import UserError

    if number < 1:
        raise UserError(f"{option} {number}: at least 1")
    return number
