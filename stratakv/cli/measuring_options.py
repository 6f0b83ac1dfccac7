"""Options, progress and output that the commands that measure quality share."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from stratakv.cli.device_option import add_device_option, checked_device
from stratakv.cli.dtypes import DTYPES, torch_dtype
from stratakv.cli.model_option import add_model_option

if TYPE_CHECKING:
    from stratakv.engine.describe import ModelDescription
    from stratakv.engine.load import LoadedModel
    from stratakv.measure.corpus import Contexts
    from stratakv.measure.far import FarContexts, NoFar
    from stratakv.measure.run import Progress

_FIRST_LINE, _BETWEEN_LINES = 5.0, 10.0  # seconds


def add_measuring_options(
    parser: argparse.ArgumentParser, context: int | None = 512, chunks: int | None = None
) -> None:
    """Model, text and how it is cut: llama.cpp's names. context, chunks: the defaults; None: the tuning's, all."""
    add_model_option(parser)
    parser.add_argument("-f", "--file", required=True, metavar="TEXT", help="a UTF-8 text file")
    parser.add_argument(
        "-c",
        "--ctx-size",
        type=int,
        default=context,
        metavar="N",
        help=f"tokens of a context ({context or 'those that the profile was tuned with'})",
    )
    add_cut_options(parser, chunks)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="f32", help="of weights and activations (f32)")
    add_device_option(parser)


def add_cut_options(parser: argparse.ArgumentParser, chunks: int | None = None) -> None:
    """How much of the text, and in which pieces. chunks: the default."""
    parser.add_argument(
        "--chunks",
        type=int,
        default=chunks,
        metavar="N",
        help=f"only the first N contexts of the text ({chunks or 'all'})",
    )
    parser.add_argument(
        "-b", "--batch-size", type=int, default=512, metavar="N", help="tokens in one forward call (512)"
    )


def add_comparing_options(
    parser: argparse.ArgumentParser, context: int | None = 512, chunks: int | None = None
) -> None:
    """As `add_measuring_options`, and far predictions beside all: how many contexts, and of how many tokens."""
    add_measuring_options(parser, context, chunks)
    parser.add_argument(
        "--far",
        type=int,
        default=4,
        metavar="CONTEXTS",
        help="contexts for far predictions, which need what was read 1,000 tokens before; each is one more forward pass a "
        "profile; 4 or more give intervals, 0: none (4)",
    )
    parser.add_argument(
        "--far-ctx-size",
        type=int,
        metavar="N",
        help="tokens of a far context (2048, or -c where that is more, within the model's context)",
    )


def describe_for_comparing(args: argparse.Namespace) -> ModelDescription:
    """The model, for what can be refused before it is loaded. UserError for far contexts that can't be."""
    from stratakv.engine.describe import describe_model
    from stratakv.measure.far import check_far

    model = describe_model(args.model)
    check_far(args.far, args.far_ctx_size, model.geometry.context)
    return model


def load_for_comparing(args: argparse.Namespace) -> tuple[LoadedModel, Contexts, FarContexts | NoFar]:
    """As `load_for_measuring`, and the far contexts of the same text; says what these cost, and all warnings. Why there are no
    far ones stands in the result."""
    from stratakv.measure.far import FarContexts, far_contexts
    from stratakv.measure.table import format_warnings

    loaded, contexts = load_for_measuring(args)
    far = far_contexts(
        contexts.text,
        loaded.tokenizer,
        args.far,
        args.far_ctx_size,
        context=args.ctx_size,
        model_context=loaded.geometry.context,
    )
    if isinstance(far, FarContexts):
        n = len(far.ids)
        say(
            f"far predictions: {n} forward passes of {far.context:,} tokens for f16 and for each profile, if the model copies; "
            "--far 0 leaves them out"
        )
    for line in format_warnings([*loaded.warnings, *contexts.warnings, *far.warnings]):
        say(line)
    return loaded, contexts, far


def load_for_measuring(args: argparse.Namespace) -> tuple[LoadedModel, Contexts]:
    """The model and the cut text; what can be refused before the weights are loaded is."""
    from stratakv.engine.load import load_model
    from stratakv.errors import UserError
    from stratakv.measure.corpus import cut, read_text

    if args.batch_size < 1:
        raise UserError(f"-b {args.batch_size}: at least 1 token in a forward call")
    text = read_text(args.file)
    device = checked_device(getattr(args, "device", "cpu"))  # `export` has none
    loaded = load_model(args.model, dtype=torch_dtype(args.dtype), exact=True, device=device)
    contexts = cut(text, loaded.tokenizer, args.ctx_size, args.chunks, loaded.geometry.context)
    for note in loaded.notes:  # after all that can be refused: a mistake is one line
        say(note)
    return loaded, contexts


def say(text: str) -> None:
    """A line that is no result: it goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def emit(text: str, data: dict[str, Any], json_to: str | None) -> None:
    """Print the result and write its JSON; with '-' the JSON has standard output for itself and the text goes to stderr."""
    import json

    if json_to == "-":
        say(text)
        print(json.dumps(data, indent=1, allow_nan=False))
        return
    print(text)
    if json_to:
        from stratakv.measure.results import write_json

        write_json(data, json_to)
        say(f"wrote {json_to}")


@contextmanager
def progress(label: str, before: int = 0) -> Iterator[Progress]:
    """A moving bar on a terminal, elsewhere a line after 5 seconds and every 10 from then on; both on stderr.

    before: passes that were done when it begins.
    """
    with _bar(label) if sys.stderr.isatty() else _lines(label, before) as report:
        yield report


@contextmanager
def stage_progress() -> Iterator[Callable[[str, int, int], None]]:
    """`progress` for work in stages: called with (stage, done, total), a new bar or a new clock for each stage."""
    with ExitStack() as stack:
        current = [""]
        report: list[Progress] = []

        def stage(name: str, done: int, total: int) -> None:
            if name != current[0]:
                stack.close()
                current[0] = name
                report[:] = [stack.enter_context(progress(name, done))]
            report[0](done, total)

        yield stage


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _lines(label: str, before: int) -> Iterator[Progress]:
    """Lines come by the clock, since a single pass of a large model may take a minute."""
    started, over = time.monotonic(), threading.Event()
    state = [0, 0, started]

    def report(done: int, total: int) -> None:
        state[:] = done, total, time.monotonic()

    def tell() -> None:
        wait = _FIRST_LINE
        while not over.wait(wait):
            wait = _BETWEEN_LINES
            done, total, at = state
            so_far = time.monotonic() - started
            if not done:
                say(f"{label}: no pass done yet, {so_far:.0f} s")
            elif done < total:
                line = f"{label}: {done} of {total} passes, {so_far:.0f} s"
                if done > before:  # what was done before says nothing of how long one takes
                    left = max(0.0, (at - started) * (total - before) / (done - before) - so_far)
                    line += f", about {left:.0f} s left"
                say(line)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield report
    finally:
        over.set()
        teller.join()
