"""`stratakv chat`: talk with a model; an empty line or end of input (Ctrl-D) ends the conversation."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from stratakv.errors import UserError


def add_parser(commands: Any) -> None:
    """Register the command."""
    from stratakv.cli.generation_options import add_generation_options

    parser = commands.add_parser("chat", help="talk with a model", description=__doc__)
    add_generation_options(parser)
    parser.add_argument("--system", help="a system message")
    parser.add_argument("-n", "--n-predict", type=int, default=512, help="new tokens an answer at most (512)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from stratakv.cli.generation_options import (
        closing_line,
        load_for_generation,
        sampling_from_args,
        utf8,
        warn_context,
    )
    from stratakv.engine.conversation import Conversation

    sampling = sampling_from_args(args)
    if args.n_predict < 1:
        raise UserError(f"-n {args.n_predict}: at least 1 new token")
    loaded, profile = load_for_generation(args)
    system = utf8(lambda: args.system or "", "--system")
    conversation = Conversation(loaded, profile, system or None)
    if problem := conversation.template_problem:
        print(
            f"warning: the model's chat template does not compile ({problem}): a plain User/Assistant form is used",
            file=sys.stderr,
        )
    elif not conversation.has_template:
        print("note: a base model without a chat template, a plain User/Assistant form is used", file=sys.stderr)
    while line := utf8(_read_line, "the line"):
        warn_context(len(conversation.held) + len(line) // 4, args.n_predict, loaded.geometry.context)
        result = conversation.ask(
            line,
            new_tokens=args.n_predict,
            sampling=sampling,
            emit=lambda text: print(text, end="", flush=True),
            prefill_chunk=args.batch_size,
        )
        print()
        print(closing_line(result, conversation.cache), file=sys.stderr)
    return 0


def _read_line() -> str:
    if sys.stdin is None:  # the caller closed it
        return ""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""
