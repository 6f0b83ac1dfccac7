"""`stratakv lm-eval`: EleutherAI's lm-evaluation-harness with every task run through the packed cache.

All arguments are the harness's own, `--model stratakv` where none is named.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import Any

from stratakv.errors import UserError

_EPILOG = """\
example:
  stratakv lm-eval --model_args pretrained=MODEL,profile=turbo4 --tasks arc_easy,lambada_openai

--model_args:
  pretrained=MODEL      a GGUF file, a directory, a hub name, or embedded
  profile=TEXT          TYPE, K/V, modeN, modeN@K/V, a preset, or a profile file (f16);
                        a rule line in quotes: profile="first3: q8_0; rest: turbo4"
  dtype=f32|bf16|f16    of activations, and of weights that are unpacked (f32)
  exact=true            matrices of a GGUF file multiply in float32, as in `compare`, which takes long for short texts
  max_length=N          tokens of a text at most (the model's context)
  and as for the harness's `hf`: max_gen_toks, add_bos_token, prefix_token_id, enable_thinking, think_end_token,
  chat_template_args

The harness's own options: stratakv lm-eval run --help. More in docs/lm-eval.md."""


def add_parser(commands: Any) -> None:
    """Register the command. No argument begins with the prefix of an option here: all go to the harness."""
    parser = commands.add_parser(
        "lm-eval",
        help="the tasks of EleutherAI's lm-evaluation-harness",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prefix_chars="\0",
        add_help=False,
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="run, ls or validate, and options")
    parser.set_defaults(func=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.arguments in ([], ["-h"], ["--help"]):
        args.parser.print_help()
        args.parser.exit()
    if find_spec("lm_eval") is None:
        raise UserError("the harness is not installed: pip install 'stratakv[lm-eval]', in a checkout make lm-eval")
    from stratakv.lm_eval.command import run as evaluate

    evaluate(args.arguments)
    return 0
