"""`stratakv sensitivity`: how much each layer's K and V matter, measured inside llama.cpp for any GGUF that it runs.

Writes NAME.json, the best profile at the budget's bytes, and NAME.evidence.json, which `plan`, `report` and `export` read.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from stratakv.cli.recorded import command_line, set_run


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "sensitivity",
        help="how much each layer's K and V matter, measured inside llama.cpp",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--through", required=True, choices=["llama.cpp"], help="the engine that runs the model")
    parser.add_argument("-m", "--model", required=True, help="GGUF file")
    parser.add_argument("-f", "--file", required=True, help="text to measure on")
    parser.add_argument("-c", "--ctx-size", type=int, default=512, metavar="N", help="tokens of a context (512)")
    parser.add_argument("--chunks", type=int, default=4, metavar="N", help="contexts of the text (4)")
    parser.add_argument(
        "--types",
        default="q8_0,turbo4,turbo3,turbo2",
        metavar="TYPE,...",
        help="beside f16 (q8_0,turbo4,turbo3,turbo2)",
    )
    parser.add_argument(
        "--budget", default="turbo4", metavar="PROFILE", help="whose bytes the chosen profile may take (turbo4)"
    )
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="threads of llama.cpp (torch's number)")
    parser.add_argument("-o", "--output", required=True, metavar="NAME", help="writes NAME.json and NAME.evidence.json")
    set_run(parser, run, outputs=("output",))


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from pathlib import Path

    import torch

    from stratakv.cli.measuring_options import say
    from stratakv.errors import UserError
    from stratakv.kvtypes import kv_type
    from stratakv.measure.corpus import read_text
    from stratakv.measure.results import check_writable, write_json
    from stratakv.profile.files import save_profile
    from stratakv.profile.profile import pair_text
    from stratakv.tune.through_llama import Wish, measure_through_llama

    path = Path(args.model)
    if not os.path.isfile(path):  # unlike Path's False for names that are too long
        raise UserError(f"-m {args.model}: a GGUF file is needed, there is none")
    types = tuple(word.strip() for word in args.types.split(",") if word.strip() and word.strip() != "f16")
    for type_ in types:
        kv_type(type_)
    threads = torch.get_num_threads() if args.threads is None else args.threads
    for name, value, least in (
        ("-c", args.ctx_size, 8),
        ("--chunks", args.chunks, 1),
        ("--types", len(types), 1),
        ("-t", threads, 1),
    ):
        if value < least:
            raise UserError(f"{name} {value}: at least {least}")
    profile_path, evidence_path = Path(f"{args.output}.json"), Path(f"{args.output}.evidence.json")
    for target in (profile_path, evidence_path):
        check_writable(str(target))
    wish = Wish(args.ctx_size, args.chunks, types, args.budget, threads)
    command = command_line(args, threads=wish.threads)
    profile, evidence = measure_through_llama(
        path, read_text(args.file), wish, name=Path(args.output).name, command=command, report=say
    )
    save_profile(profile, profile_path)
    write_json(evidence, evidence_path)
    size = f"{profile.bytes_per_token:,} bytes a token, {profile.bpv:.3f} bpv"
    print(f"{profile.geometry.name}: {size}; {evidence['headroom']['words']}")
    cells = {(c["ordinal"], c["side"], c["type"]): c["kld"] for c in evidence["sensitivity"]["cells"]}
    header = "".join(f"{side.upper()} {type_}".rjust(12) for side in "kv" for type_ in types)
    print(f"{'KV layer':10}{header}   chosen   (KLD in 1e-3 nats, the cell alone)")
    for ordinal, pair in enumerate(profile.pairs):
        row = "".join(f"{1e3 * cells[ordinal, side, type_]:12.3f}" for side in "kv" for type_ in types)
        print(f"{ordinal:<10}{row}   {pair_text(pair)}")
    say(f"wrote {profile_path} and {evidence_path}")
    return 0
