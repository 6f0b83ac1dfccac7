"""`stratakv COMMAND ...`: finds the command's module, runs it, turns user mistakes into one line and exit code 2."""

from __future__ import annotations

import argparse
import errno
import gc
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

from stratakv import __version__
from stratakv.cli.patience import patience
from stratakv.errors import UserError
from stratakv.sizes import size_text

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


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's share of it, the largest file


_MAY_BE_EMPTY = ("model", "prompt", "system", "arguments")  # it means something, or more is said of it elsewhere
LARGEST = 2**31 - 1  # of an option that is a whole number: torch, numpy and C count on


def _whole_number(text: str) -> int:
    number = int(text)
    if abs(number) > LARGEST:
        raise argparse.ArgumentTypeError(f"{text} is too large, at most {LARGEST:,} is allowed")
    return number


class _Parser(argparse.ArgumentParser):
    """A mistake in the options is one line like any other."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("type", int, _whole_number)  # wherever an option says type=int

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """An empty value is mostly a shell's unset variable: taken as none it would be the default, silently."""
        found, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            value = getattr(found, action.dest, None)
            if "" in (value if isinstance(value, list) else [value]) and action.dest not in _MAY_BE_EMPTY:
                name = "/".join(action.option_strings) or action.metavar
                raise UserError(
                    f"{name} is empty: give a value, or leave it out ({self.prog} --help shows what is allowed)"
                )
        return found, rest

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help shows what is allowed)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 a mistake the user can mend, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:  # a process of its own: imports make a million objects, none of them garbage
        gc.set_threshold(50_000, 20, 50)
    try:
        _quiet_libraries()
        try:
            args = parse(arguments)
        finally:
            _flush()  # --help and --version end here
        with _warnings_in_one_line(), patience(arguments[0], args):
            code: int = args.func(args)
        _flush()
        return code
    except UserError as error:
        return _mistake(str(error))
    except KeyboardInterrupt:
        print("stratakv: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        _drop_output()
        return 0
    except (OSError, MemoryError, RuntimeError) as error:
        if (words := _exhausted(error)) is None:
            raise
        return _mistake(words)
    finally:
        # The end would look through all of them again, for a second; what belongs to a loaded model has to be freed in order, and
        # Triton, which transformers imports where it is installed, reports what is left as leaks
        if argv is None and not {"stratakv.engine.load", "triton"} & set(sys.modules):
            gc.freeze()


def _flush() -> None:
    if sys.stdout is not None:  # None: the caller closed it
        sys.stdout.flush()


def _mistake(words: str) -> int:
    print(f"stratakv: error: {words}", file=sys.stderr)
    try:
        _flush()
    except OSError:
        _drop_output()
    return 2


def _exhausted(error: Exception) -> str | None:
    """What to tell who has no disk or memory left; None for other errors."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, OSError) and number in _FULL:
        return f"cannot write: {error.strerror}; make room, or write to another place"
    text = str(error)
    lacks = isinstance(error, MemoryError) or number == errno.ENOMEM or "can't allocate memory" in text
    if not lacks and "CUDA out of memory" not in text:
        return None
    found = re.search(r"allocate (\d+) bytes", text)
    size = f" for {size_text(int(found[1]))} at once" if found else ""
    return f"there is not enough memory{size}: a shorter context, a smaller batch or a smaller model takes less"


def _drop_output() -> None:
    """What is still to be written to standard output would fail once more when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
