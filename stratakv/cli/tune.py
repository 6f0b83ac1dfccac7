"""`stratakv tune`: find the best profile for a model and a budget of bytes, and prove it on text that the choice didn't see."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratakv.cli.device_option import add_device_option, checked_device
from stratakv.cli.model_option import add_model_option
from stratakv.cli.profile_options import add_span_options, sizes_from_args
from stratakv.cli.recorded import command_line, set_run

if TYPE_CHECKING:
    from stratakv.engine.load import LoadedModel
    from stratakv.measure.corpus import Text
    from stratakv.tune.run import Request, Tuned

DEFAULT_CONTEXT, SPANS_CONTEXT = 512, 2048


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser("tune", help="find the best profile for a model and a budget", description=__doc__)
    add_model_option(parser)
    budget = parser.add_argument_group("budget: one of these (uniform turbo4's bytes)")
    budget.add_argument("--budget", metavar="PROFILE", help="the bytes of a profile, such as turbo4 or q8_0/turbo4")
    budget.add_argument("--bpv", type=float, metavar="X", help="bits per value, everything counted")
    budget.add_argument("--bytes-per-token", type=int, metavar="N", help="bytes a token in all KV layers")
    budget.add_argument("--memory", metavar="SIZE", help="a cache of --context tokens must fit, such as 2GiB")
    budget.add_argument("--context", metavar="N", help="tokens, with --memory, such as 131072 or 128k")
    parser.add_argument("--types", metavar="T,T,...", help="types that may be used (all that the model can store)")
    parser.add_argument(
        "--floor",
        action="append",
        default=[],
        metavar="LAYER=K/V",
        help="types that a KV layer may not go below in bytes",
    )
    add_span_options(parser)
    parser.add_argument("--text", metavar="FILE", help="UTF-8 text to tune on (the embedded tuning text)")
    parser.add_argument(
        "-c",
        "--ctx-size",
        type=int,
        metavar="N",
        help=f"tokens of a context ({DEFAULT_CONTEXT}; with spans, and to choose them, {SPANS_CONTEXT})",
    )
    parser.add_argument(
        "--effort",
        choices=("first", "quick", "normal", "full"),
        default="first",
        help="how much is measured; first: 6 forward passes' gradients alone (first)",
    )
    parser.add_argument(
        "--far",
        type=float,
        metavar="WEIGHT",
        help="of far predictions, which need what was read 1,000 tokens before, in what is minimised: 0 to 1 (0.25 with "
        "--memory and --effort first where the model copies, else 0)",
    )
    parser.add_argument(
        "--second-opinion",
        type=int,
        metavar="PASSES",
        help="forward passes on text that nothing was chosen on, 3 or more, which say what the profile gives against the best "
        "uniform pair in the budget; 0: none (4; efforts that measure have more)",
    )
    parser.add_argument("--name", help="of the profile (tuned-BPV)")
    parser.add_argument(
        "--out", default=".", metavar="DIR", help="where NAME.profile.json, .evidence.json and .html go (.)"
    )
    parser.add_argument(
        "--runs", metavar="DIR", help="where measurements are kept, to go on after a kill (DIR of --out, stratakv-runs)"
    )
    parser.add_argument(
        "--dtype", choices=("f32", "bf16", "f16"), default="f32", help="of weights and activations (f32)"
    )
    add_device_option(parser)
    set_run(parser, run, outputs=("out", "runs"))


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import torch

    from stratakv.assets import tuning_text
    from stratakv.cli.measuring_options import say
    from stratakv.cli.sizes import parse_memory, parse_tokens
    from stratakv.engine.describe import describe_model
    from stratakv.engine.load import load_model
    from stratakv.errors import UserError
    from stratakv.files import check_directory
    from stratakv.measure.corpus import read_text
    from stratakv.profile.spans import NONE
    from stratakv.tune.budget import budget_from
    from stratakv.tune.run import Request
    from stratakv.tune.types import allowed_types

    device = checked_device(args.device)
    out = Path(args.out)
    check_directory(out, "--out")
    if args.name is not None and (not args.name.strip() or Path(args.name).name != args.name):
        raise UserError(f"--name {args.name!r}: a part of file names, without directories; --out says where they go")
    described = describe_model(args.model)
    geometry = described.geometry
    if args.name is not None and (other := _other_model(out, args.name, described.fingerprint)):
        raise UserError(
            f"--name {args.name}: {out / args.name}.profile.json is another model's, {other}; give another name, or another --out"
        )
    budget = budget_from(
        geometry,
        profile=args.budget,
        bpv=args.bpv,
        bytes_per_token=args.bytes_per_token,
        memory=None if args.memory is None else parse_memory(args.memory, "--memory"),
        context=None if args.context is None else parse_tokens(args.context, "--context"),
    )
    given = None if args.types is None else tuple(name.strip() for name in args.types.split(",") if name.strip())
    if given == ():
        raise UserError(
            f"--types {args.types!r} names no type: write some with commas between, such as turbo3,turbo4,turbo5"
        )
    types = None if given is None else allowed_types(geometry, given)
    text = read_text(args.text or tuning_text())
    notes = []
    if args.text is None and args.model != "embedded":
        notes = [f"tuning on the embedded text ({text.name}); text like yours is better: --text FILE"]
    request = Request(
        budget,
        args.effort,
        types,
        floors=_floors(args.floor),
        name=args.name,
        free_name=partial(_free_name, out, described.fingerprint),
        runs=Path(args.runs) if args.runs else out / "stratakv-runs",
        spans=None if args.recent is None and args.first is None else NONE.having(sizes_from_args(args)),
        second_opinion=args.second_opinion,
        far=args.far,
    )
    dtypes = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
    loaded = load_model(args.model, dtype=dtypes[args.dtype], device=device)
    notes += [f"warning: {warning}" for warning in loaded.warnings]
    try:
        tune_and_write(loaded, text, request, args.ctx_size, out, command_line(args), notes)
    except KeyboardInterrupt:
        say(f"what was measured is kept in {request.runs}: the same command goes on from there")
        raise
    return 0


def tune_and_write(
    loaded: LoadedModel,
    text: Text,
    request: Request,
    context: int | None,
    out: Path,
    command: str,
    notes: Sequence[str] = (),
) -> tuple[Path, Path]:
    """Tune, write NAME.profile.json, NAME.evidence.json and NAME.html into out, print what was found; the first two paths.

    notes: said before the first stage, after all that can be refused, so that a mistake is one line.
    """
    from stratakv.cli.measuring_options import say, stage_progress
    from stratakv.files import write_file
    from stratakv.measure.results import write_json
    from stratakv.profile import save_profile
    from stratakv.report import build_report
    from stratakv.tune.evidence import evidence_of, format_evidence
    from stratakv.tune.run import tune

    if context is None:
        wide = request.spans or (request.spans is None and request.budget.context)
        limits = (SPANS_CONTEXT if wide else DEFAULT_CONTEXT, loaded.geometry.context, request.budget.context)
        context = min(limit for limit in limits if limit)
    untold = list(notes)

    def say_with_notes(line: str) -> None:
        while untold:
            say(untold.pop(0))
        say(line)

    with stage_progress() as report:
        tuned = tune(
            loaded,
            text,
            request,
            context=context,
            say=say_with_notes,
            report=report,
        )
    data = evidence_of(tuned, text, request, command)
    profile_path = out / f"{tuned.profile.name}.profile.json"
    evidence_path = out / f"{tuned.profile.name}.evidence.json"
    report_path = out / f"{tuned.profile.name}.html"
    write_json(data, evidence_path)
    write_file(report_path, build_report(data, []).encode())
    save_profile(_with_evidence(tuned, data, evidence_path.name), profile_path)
    print(format_evidence(data))
    say(f"wrote {profile_path}, {evidence_path} and {report_path}")
    return profile_path, evidence_path


def _with_evidence(tuned: Tuned, data: dict[str, Any], file: str) -> Any:
    from dataclasses import replace

    from stratakv.profile.rules import rule_line

    reference = tuned.reference
    evidence = {"text": data["text"]["sha256"], "context": data["text"]["context"], "chunk": data["text"]["chunk"]}
    evidence["best_uniform"] = rule_line(reference.pairs, reference.spans, reference.geometry)
    if data["rows"]:
        row = data["rows"][0]
        evidence |= {
            "against": data["reference"],
            "kld": {"mean": row["kld_mean"], "ci95": row["kld_mean_ci95"]},
            "kld_diff": {"mean": row["kld_diff"], "ci95": row["kld_diff_ci95"]},
        }
    evidence["file"] = file
    return replace(tuned.profile, evidence=evidence)


def _free_name(out: Path, fingerprint: str, name: str) -> str:
    """The name, with a number where another model's profile has it."""
    numbered = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(each for each in numbered if not _other_model(out, each, fingerprint))


def _other_model(out: Path, name: str, fingerprint: str) -> str | None:
    """The name of the model that a profile file of this name is for, where it is there and for another one."""
    from stratakv.profile.files import model_of

    path = out / f"{name}.profile.json"
    if not path.exists():
        return None
    theirs, model = model_of(path)
    return None if theirs == fingerprint else model


def _floors(given: list[str]) -> dict[int, tuple[str, str]]:
    from stratakv.errors import UserError
    from stratakv.profile.rules import parse_pair

    floors = {}
    for text in given:
        ordinal, equals, types = text.partition("=")
        if not equals or not ordinal.strip().isdecimal():
            raise UserError(f"--floor {text}: write LAYER=K/V, a KV layer's number and types, such as 0=q8_0/turbo4")
        floors[int(ordinal)] = parse_pair(types)
    return floors
