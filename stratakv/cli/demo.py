"""`stratakv demo`: the embedded model through every mode, an answer in words; then a profile tuned for it, and its report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from stratakv.cli.recorded import command_line

CONTEXT = 512
CHUNKS = 16
REFERENCE = "turbo4"
PROFILES = (
    "f16",
    "q8_0",
    "q4_0_rot",
    "turbo4",
    "turbo3",
    "turbo2",
    "q8_0/turbo4",
    "mode1",
    "mode2",
    "mode5",
    "mode6",
    "mode7",
    "edges3",
    "edges3-vf16",
    "edges3-turbo3",
)


def add_parser(commands: Any) -> None:
    """Register the command."""
    from stratakv.cli.measuring_options import add_cut_options

    parser = commands.add_parser("demo", help="the embedded model through every mode", description=__doc__)
    add_cut_options(parser)
    parser.add_argument("--out", default=".", metavar="DIR", help="where demo-results.* and demo-tuned.* go (.)")
    parser.set_defaults(func=run, chunks=CHUNKS)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from stratakv.assets import judging_text
    from stratakv.cli.main import parse
    from stratakv.cli.measuring_options import emit, load_for_measuring, progress, say
    from stratakv.measure.findings import findings
    from stratakv.measure.plot import plot_comparison
    from stratakv.measure.results import check_writable, compare
    from stratakv.measure.table import format_comparison
    from stratakv.profile import resolve

    out = Path(args.out)
    results, plots = out / "demo-results.json", [out / "demo-results.png", out / "demo-results.svg"]
    for path in (results, *plots):
        check_writable(path)
    words = ["compare", "-m", "embedded", "-f", str(judging_text()), "-c", str(CONTEXT), "-b", str(args.batch_size)]
    words += [] if args.chunks is None else ["--chunks", str(args.chunks)]
    words += ["--far", "0"]  # the embedded model doesn't copy: there is nothing to measure
    general = parse([*words, "--reference", REFERENCE, *PROFILES])  # the command that gives the same numbers
    loaded, contexts = load_for_measuring(general)
    profiles = [resolve(text, loaded.geometry) for text in PROFILES]
    say(f"{len(profiles)} profiles on {len(contexts.ids)} contexts of {CONTEXT} tokens: a few minutes on two cores")
    with progress("demo") as report:
        data = compare(
            loaded,
            contexts,
            profiles,
            resolve(REFERENCE, loaded.geometry),
            batch=args.batch_size,
            command=command_line(general),
            progress=report,
        )
    emit(f"{format_comparison(data)}\n\n{findings(data)}", data, str(results))
    for plot in plots:
        plot_comparison(data, plot)
        say(f"wrote {plot}")
    _tune(out)
    return 0


def _tune(out: Path) -> None:
    """A quick profile at uniform turbo4's bytes, and its report."""
    from stratakv.assets import tuning_text
    from stratakv.cli.main import parse
    from stratakv.cli.measuring_options import say
    from stratakv.cli.tune import tune_and_write
    from stratakv.engine.load import load_model
    from stratakv.measure.corpus import read_text
    from stratakv.tune.budget import budget_from
    from stratakv.tune.run import Request

    say(f"tuning a profile at {REFERENCE}'s bytes on the embedded tuning text: a few minutes more")
    loaded = load_model("embedded")  # as `tune` does it: its products aren't those of `compare`
    request = Request(budget_from(loaded.geometry), "quick", name="demo-tuned", runs=out / "stratakv-runs")
    general = parse(["tune", "-m", "embedded", "--effort", "quick", "-c", str(CONTEXT), "--name", "demo-tuned"])
    tune_and_write(loaded, read_text(tuning_text()), request, CONTEXT, out, command_line(general))
