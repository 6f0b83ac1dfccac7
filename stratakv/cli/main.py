"""`stratakv COMMAND ...`: finds the command's module, runs it, turns user mistakes into one line and exit code 2."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import NoReturn

from stratakv import __version__
from stratakv.cli.patience import patience
from stratakv.errors import UserError

# command -> one line for --help; the module stratakv.cli.COMMAND, '-' as '_', is imported only when it is needed
COMMANDS = {
    "show": "what every layer gets with a profile: types, bytes a token, warnings",
    "plan": "of memory, context and quality any two give the third: a table and a command",
    "perplexity": "perplexity and KL divergence of one profile on a text",
    "compare": "profiles side by side on a text: bytes, PPL, KL divergence, verdicts",
    "lm-eval": "the tasks of EleutherAI's lm-evaluation-harness through the packed cache",
    "needles": "keys and values planted in a text and asked for at its end: which profiles still find them",
    "sensitivity": "how much each layer's K and V matter, measured inside llama.cpp for any GGUF that it runs",
    "tune": "find the best profile for a model and a budget of bytes, with its evidence",
    "judge": "a tuned profile against every baseline at its bytes, on text that its tuning never saw",
    "probe": "within a minute, what is known to break a model under a quantized cache",
    "bench": "speed on this machine: attention beside torch's and llama.cpp's, tokens per second, peak memory",
    "export": "a profile for another runtime: its exact command line, or the best that it can express",
    "report": "a tuned profile's evidence as one HTML page",
    "generate": "continue a prompt",
    "chat": "talk with a model",
    "serve": "a server for clients of OpenAI, Anthropic, llama-server and Ollama, with a page to watch the cache",
    "demo": "the embedded model through every mode: table, plot and an answer in words",
}


class _Parser(argparse.ArgumentParser):
    """A mistake in the options is one line like any other."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help shows what is allowed)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 a mistake the user can mend, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:  # a process of its own: imports make a million objects, none of them garbage
        gc.set_threshold(50_000, 20, 50)
    try:
        _quiet_libraries()
        args = parse(arguments)
        with _warnings_in_one_line(), patience(arguments[0], args):
            code: int = args.func(args)
        if sys.stdout is not None:  # None: the caller closed it
            sys.stdout.flush()
        return code
    except UserError as error:
        print(f"stratakv: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stratakv: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        # The end would look through all of them again, for a second; what belongs to a loaded model has to be freed in order, and
        # Triton, which transformers imports where it is installed, reports what is left as leaks
        if argv is None and not {"stratakv.engine.load", "triton"} & set(sys.modules):
            gc.freeze()


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What a command line says, its first word the command. Raises UserError for a mistake in it."""
    return _parser(arguments).parse_args(arguments)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="stratakv",
        description="Language models with long contexts in little memory: every layer's K and V cache in a type of its own.",
    )
    parser.add_argument("--version", action="version", version=f"stratakv {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    chosen = arguments[0] if arguments else ""
    for name, line in COMMANDS.items():
        if name == chosen:
            import_module(f"stratakv.cli.{name.replace('-', '_')}").add_parser(commands)
            parser.prog = f"stratakv {name}"  # whose --help an unknown option is sent to
        else:
            commands.add_parser(name, help=line)
    return parser


def _quiet_libraries() -> None:
    """The libraries' advice doesn't belong between our lines; our own warnings say what matters."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Python's form names a file and quotes its code; a user needs the sentence."""
    original = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = original


if __name__ == "__main__":
    sys.exit(main())
