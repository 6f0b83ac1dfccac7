"""`stratakv bench attention`: a layer's attention, prefill and encoding, on a CPU, on a GPU, and as predicted for GPUs."""

from __future__ import annotations

import argparse
from typing import Any

from stratakv.cli.bench.options import (
    add_common,
    check_outputs,
    command,
    positive,
    seconds,
    size,
    sizes,
    threads,
    words,
)
from stratakv.cli.recorded import command_line, set_run

SUMMARY = "decode attention, prefill and encoding beside torch's attention and llama.cpp's"
_PARTS = ("decode", "prefill", "encode")
_ALL: dict[str, Any] = {
    "device": "cpu",
    "contexts": "1k,8k,32k,128k",
    "parts": ",".join(_PARTS),
    "rotate_mib": 256,
    "seconds": 10.0,
}
# What each way of running reads beside types, shapes and --json, and what it takes where nothing is given
_CPU = _ALL | {"groups": "4,1,8", "prefill": "8k,32k+512", "threads": None, "llama_python": None, "plot": None}
_GPU = _ALL | {"groups": "4", "prefill": "32k", "batch": "1,8,64"}
_PREDICTED: dict[str, Any] = {"groups": "4"}


def add_parser(kinds: Any) -> argparse.ArgumentParser:
    """Register the benchmark."""
    parser: argparse.ArgumentParser = kinds.add_parser("attention", help=SUMMARY, description=SUMMARY)
    parser.add_argument("-c", "--contexts", metavar="N,...", help="tokens of context (1k,8k,32k,128k)")
    parser.add_argument("--groups", metavar="N,...", help="query heads a kv head (4,1,8; on a GPU 4)")
    parser.add_argument(
        "--types",
        metavar="TYPES,...",
        default="f16,q8_0,turbo4,turbo3,turbo2,q8_0/turbo4,tcq4,tcq3",
        help="TYPE or K/V (f16,q8_0,turbo4,turbo3,turbo2,q8_0/turbo4,tcq4,tcq3)",
    )
    parser.add_argument("--kv-heads", type=int, default=8, metavar="N", help="kv heads (8)")
    parser.add_argument("--head-dim", type=int, default=128, metavar="N", help="values of a vector (128)")
    parser.add_argument("--parts", metavar="PART,...", help="of decode, prefill, encode (all)")
    parser.add_argument(
        "--prefill",
        metavar="N[+Q],...",
        help="prompts of N tokens, or Q tokens on top of N (8k,32k+512; on a GPU 32k)",
    )
    parser.add_argument("--rotate-mib", type=int, metavar="N", help="MiB of caches that a case reads in turn (256)")
    parser.add_argument("--plot", metavar="FILE", help="draw the decode steps of a CPU, .png or .svg")
    parser.add_argument(
        "--device", help="cpu, or cuda or cuda:N: CUDA events, beside torch's SDPA over dense bf16 (cpu)"
    )
    parser.add_argument("--batch", metavar="N,...", help="sequences at once, on a GPU only (1,8,64)")
    parser.add_argument(
        "--predict",
        action="store_true",
        help="only what a GPU's kernel would need, from its machine code: nothing is measured",
    )
    add_common(parser, seconds=None, what="each context and group (10), or each row on a GPU")
    set_run(parser, run, outputs=("json", "plot"))
    return parser


def run(args: argparse.Namespace) -> int:
    """Run `bench attention`."""
    from stratakv.bench.attention.caches import Shape
    from stratakv.bench.attention.plot import plot_attention
    from stratakv.bench.attention.run import AttentionSettings, bench_attention
    from stratakv.bench.attention.table import format_attention
    from stratakv.bench.peers.llama import llama_python
    from stratakv.cli.measuring_options import emit, say
    from stratakv.picture import check_plot_path

    settle(args)
    check_outputs(args.json, args.plot)
    if args.plot:
        check_plot_path(args.plot)
    shape = Shape(positive(args.kv_heads, "--kv-heads"), positive(args.head_dim, "--head-dim"))
    if args.predict:
        return _predict(args, shape)
    if args.device != "cpu":
        return _run_on_a_gpu(args, shape)
    settings = AttentionSettings(
        contexts=sizes(args.contexts, "-c"),
        groups=sizes(args.groups, "--groups"),
        pairs=_pairs(args.types, shape.head_dim),
        threads=threads(args.threads),
        parts=_parts(args.parts),
        shape=shape,
        prefill=_prompts(args.prefill),
        seconds=seconds(args.seconds),
        rotate_bytes=positive(args.rotate_mib, "--rotate-mib") * 2**20,
        llama_python=llama_python(args.llama_python),
    )
    data = bench_attention(settings, command=command(args, settings.threads), report=say)
    emit(format_attention(data), data, args.json)
    if args.plot:
        plot_attention(data, args.plot)
        say(f"wrote {args.plot}")
    return 0


def settle(args: argparse.Namespace) -> None:
    """Options that weren't given become what this way of running takes. UserError for one that it doesn't read."""
    from stratakv.errors import UserError

    way, reads = "with --device cpu", _CPU
    if args.predict:
        way, reads = "with --predict", _PREDICTED
    elif args.device not in (None, "cpu"):
        way, reads = f"with --device {args.device}", _GPU
    for name in sorted(_CPU.keys() | _GPU.keys()):
        if name not in reads and getattr(args, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')}: `bench attention` doesn't read it {way}, leave one of them out"
            )
        if getattr(args, name) is None:
            setattr(args, name, reads.get(name))


def _predict(args: argparse.Namespace, shape: Any) -> int:
    from stratakv.bench.attention.predict import format_predicted, predict
    from stratakv.cli.measuring_options import emit

    data = predict(shape, _pairs(args.types, shape.head_dim), sizes(args.groups, "--groups"))
    emit(format_predicted(data), data, args.json)
    return 0


def _run_on_a_gpu(args: argparse.Namespace, shape: Any) -> int:
    from stratakv.bench.attention.gpu import GpuSettings, bench_gpu, format_gpu, gpu
    from stratakv.cli.measuring_options import emit, say

    settings = GpuSettings(
        _pairs(args.types, shape.head_dim),
        shape,
        batches=sizes(args.batch, "--batch"),
        contexts=sizes(args.contexts, "-c"),
        groups=sizes(args.groups, "--groups"),
        parts=_parts(args.parts),
        prefill=_prompts(args.prefill),
        seconds=seconds(args.seconds),
        rotate_bytes=positive(args.rotate_mib, "--rotate-mib") * 2**20,
    )
    data = bench_gpu(settings, gpu(args.device), command=command_line(args), report=say)
    emit(format_gpu(data), data, args.json)
    return 0


def _prompts(text: str) -> tuple[tuple[int, int], ...]:
    """(tokens, queries) of each: 8k is a prompt, 32k+512 a chunk on top."""
    found = []
    for word in words(text, "--prefill"):
        before, plus, chunk = word.partition("+")
        tokens, queries = size(before, "--prefill"), size(chunk if plus else before, "--prefill")
        found.append((tokens + queries if plus else tokens, queries))
    return tuple(found)


def _pairs(text: str, head_dim: int) -> tuple[tuple[str, str], ...]:
    from stratakv.kvtypes import kv_type
    from stratakv.profile.rules import parse_pair

    pairs = tuple(parse_pair(word) for word in words(text, "--types"))
    for name in (name for pair in pairs for name in pair):
        kv_type(name).check(head_dim)
    return pairs


def _parts(text: str) -> tuple[str, ...]:
    from stratakv.errors import UserError

    parts = words(text, "--parts")
    if unknown := [part for part in parts if part not in _PARTS]:
        raise UserError(f"--parts {unknown[0]}: allowed are {', '.join(_PARTS)}")
    return parts
