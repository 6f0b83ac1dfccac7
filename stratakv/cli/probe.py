"""`stratakv probe`: within a minute, what is known to break a model under a quantized cache, in words."""

from __future__ import annotations

import argparse
import math
from typing import Any

from stratakv.cli.model_option import add_model_option

CONTEXT, CHUNKS = 512, 4


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser("probe", help="what is known to break under a quantized cache", description=__doc__)
    add_model_option(parser)
    parser.add_argument("--text", metavar="FILE", help="UTF-8 text to run (the embedded tuning text)")
    parser.add_argument("-c", "--ctx-size", type=int, metavar="N", help=f"tokens of a context ({CONTEXT})")
    parser.add_argument("--chunks", type=int, default=CHUNKS, metavar="N", help=f"contexts ({CHUNKS})")
    parser.add_argument("--limit", type=float, metavar="KLD", help="nats that one layer's side may cost alone (0.02)")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON, '-': to standard output")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from stratakv.assets import tuning_text
    from stratakv.cli.measuring_options import emit, progress, say
    from stratakv.engine.load import load_model
    from stratakv.errors import UserError
    from stratakv.files import check_writable
    from stratakv.measure.corpus import cut, read_text
    from stratakv.tune.probe import KLD_LIMIT, format_probe, probe

    if args.limit is not None and not 0 < args.limit < math.inf:
        raise UserError(f"--limit {args.limit}: nats, above 0 and finite")
    if args.json and args.json != "-":
        check_writable(args.json)
    text = read_text(args.text or tuning_text())
    loaded = load_model(args.model)
    limit = loaded.geometry.context
    context = (min(CONTEXT, limit) if limit else CONTEXT) if args.ctx_size is None else args.ctx_size
    contexts = cut(text, loaded.tokenizer, context, args.chunks, limit)
    for warning in loaded.warnings:
        say(f"warning: {warning}")
    with progress("probe") as report:
        data = probe(loaded, contexts.ids, limit=KLD_LIMIT if args.limit is None else args.limit, progress=report)
    emit(format_probe(data), data, args.json)
    return 0
