"""`stratakv export`: a profile as the exact command line of another runtime, or as a profile file.

What the runtime can't express is an error that says what, and offers the best profile that it can express in the same bytes. With
--evidence that is chosen by measured sensitivities, and with -f its true KLD is measured beside the profile's.
"""

from __future__ import annotations

import argparse
import json
import shlex
from typing import TYPE_CHECKING, Any, NoReturn

from stratakv.cli.model_option import add_model_option
from stratakv.errors import UserError

if TYPE_CHECKING:
    from stratakv.engine.describe import ModelDescription
    from stratakv.export.target import Target
    from stratakv.profile import Profile


def add_parser(commands: Any) -> None:
    """Register the command."""
    from stratakv.cli.measuring_options import add_cut_options
    from stratakv.cli.profile_options import add_span_options
    from stratakv.export.targets import TARGETS, explained

    parser = commands.add_parser(
        "export",
        help="a profile for another runtime: its exact command line",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("profile", metavar="PROFILE", help="a profile file (.json), or any text that --profile takes")
    add_model_option(parser)
    parser.add_argument(
        "--to",
        required=True,
        choices=tuple(TARGETS),
        help=explained(),
    )
    add_span_options(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="write the command or file there (standard output)")
    parser.add_argument(
        "--evidence",
        metavar="FILE",
        help="NAME.evidence.json of this model: offers go by what it measured (the one beside a tuned profile)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON (schema stratakv/export/1)")
    group = parser.add_argument_group("measuring an offer: its true KLD beside that of the profile asked for")
    group.add_argument("-f", "--file", metavar="TEXT", help="a UTF-8 text file; without it nothing is measured")
    group.add_argument("-c", "--ctx-size", type=int, default=512, metavar="N", help="tokens of a context (512)")
    add_cut_options(group)
    group.add_argument(
        "--dtype", choices=["f32", "bf16", "f16"], default="f32", help="of weights and activations (f32)"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from stratakv.cli.measuring_options import say
    from stratakv.cli.profile_options import sizes_from_args
    from stratakv.engine.describe import describe_model
    from stratakv.export.target import NotExpressible, lost_spans
    from stratakv.export.targets import OWN, target
    from stratakv.files import check_writable, write_file
    from stratakv.profile import resolve
    from stratakv.profile.parse import respanned

    if args.output:
        check_writable(args.output)
    goal = target(args.to)
    model = describe_model(args.model)
    profile = respanned(resolve(args.profile, model.geometry, fingerprint=model.fingerprint), sizes_from_args(args))
    path, notes = _model_for(goal, model)
    if args.to != OWN:
        notes += lost_spans(profile, goal.title)
    try:
        command = goal.command(profile, path)
    except NotExpressible as reason:
        _offer(args, goal, model, profile, str(reason))
    for note in (*profile.warnings, *notes, *command.notes):
        say(f"note: {note}")
    if args.output:
        write_file(args.output, f"{command.text}\n".encode())
        say(f"wrote {args.output}")
    if args.json:
        print(json.dumps(_data(args, profile, command.text, [*notes, *command.notes]), indent=1))
    elif not args.output:
        print(command.text)
    return 0


def _offer(args: argparse.Namespace, goal: Target, model: ModelDescription, profile: Profile, reason: str) -> NoReturn:
    """Work out and print what the target can express instead; always ends in the UserError that says why."""
    from stratakv.cli.measuring_options import say
    from stratakv.export.costs import MeasuredCosts
    from stratakv.export.offer import offer, offer_data

    costs, evidence = None, args.evidence or _beside(args.profile, profile)
    if evidence:
        costs = MeasuredCosts.of(_evidence(evidence, model), model.geometry)
        if costs is None:
            say(f"note: {evidence} has no measured sensitivity for every layer and side: the offer goes by bits")
    offered = offer(profile, goal, costs)
    data = offer_data(profile, offered, goal, costs)
    if args.file:
        data["measured"] = _measure(args, profile, offered)
    words = ["stratakv", "export", offered.name, "-m", args.model, "--to", args.to]
    for line in _offer_lines(data, goal, bool(costs)):
        say(line)
    if args.json:
        whole = {**_data(args, profile, None, []), "reason": reason, "offer": data}
        print(json.dumps(whole, indent=1))
    raise UserError(f"{goal.title} can't express {profile.name}: {reason}; what it can is above: {shlex.join(words)}")


def _offer_lines(data: dict[str, Any], goal: Target, by_evidence: bool) -> list[str]:
    from stratakv.measure.table import milli

    room = "in its bytes (1 % more at most)" if data["within_bytes"] else "nothing in its bytes, this is the smallest"
    lines = [f"{goal.title} can express, {data['chosen_by']}, {room}: {data['text']}"]
    lines += [f"  {change}" for change in data["changes"]]
    lines.append(f"  {data['bytes_per_token']:,} bytes a token instead of {data['asked_bytes_per_token']:,}")
    if by_evidence:
        before, after = data["asked_predicted_kld"], data["predicted_kld"]
        lines.append(f"  predicted KLD {milli(after)}e-3 nats instead of {milli(before)}e-3")
        if data["estimated_types"]:
            lines.append(f"  not measured, estimated from their error: {', '.join(data['estimated_types'])}")
    else:
        lines.append("  what that costs in KLD is unknown: --evidence predicts it, -f TEXT measures it")
    if turbo := data["turbo"]:
        lines.append(
            f"  with turbo in place of trellis types: {turbo['text']}, {turbo['bytes_per_token']:,} bytes a token there"
        )
    if measured := data["measured"]:
        lines.append(f"  measured on {measured['text']}: KLD {measured['words']}")
    return lines


def _measure(args: argparse.Namespace, profile: Profile, offered: Profile) -> dict[str, Any]:
    """True KLD of both on the packed path."""
    from stratakv.cli.measuring_options import load_for_measuring, progress
    from stratakv.measure.results import compare
    from stratakv.measure.table import milli
    from stratakv.measure.verdicts import kld_in_words

    loaded, contexts = load_for_measuring(args)
    with progress("export") as report:
        data = compare(loaded, contexts, [offered], profile, batch=args.batch_size, progress=report)
    after, before = data["rows"]
    change = kld_in_words(after["kld_diff"], after["kld_diff_ci95"], before["kld_mean"]).removeprefix("KLD ")
    return {
        "text": data["text"]["name"],
        "context": data["context"],
        "chunks": data["chunks"],
        "kld": after["kld_mean"],
        "kld_ci95": after["kld_mean_ci95"],
        "asked_kld": before["kld_mean"],
        "kld_diff": after["kld_diff"],
        "kld_diff_ci95": after["kld_diff_ci95"],
        "words": f"{milli(after['kld_mean'])}e-3 nats instead of {milli(before['kld_mean'])}e-3, {change}",
    }


def _beside(given: str, profile: Profile) -> str | None:
    """The evidence that `tune` wrote beside a profile file, if it is still there."""
    from pathlib import Path

    name = (profile.evidence or {}).get("file")
    path = Path(given).parent / Path(name).name if isinstance(name, str) else None
    return str(path) if path is not None and path.is_file() else None


def _evidence(path: str, model: ModelDescription) -> dict[str, Any]:
    from stratakv.evidence import read_evidence

    evidence = read_evidence(path)
    theirs = evidence["model"]["fingerprint"]
    if (theirs and theirs != model.fingerprint) or len(evidence["geometry"]) != len(model.geometry.kv_layers):
        raise UserError(
            f"{path} is of the model {evidence['model']['name']}, not of the one at hand: give its own evidence"
        )
    return evidence


def _model_for(target: Target, model: ModelDescription) -> tuple[str, list[str]]:
    """How the target is told the model, and what has to be done before."""
    if target.weights == "directory" and model.gguf is not None:
        return "MODEL_DIRECTORY", [f"{target.title} takes a directory or hub name: give those weights, not the GGUF"]
    if target.weights == "gguf" and model.gguf is None:
        return "MODEL.gguf", ["llama.cpp takes a GGUF: convert the model with its convert_hf_to_gguf.py"]
    return str(model.path), []


def _data(args: argparse.Namespace, profile: Profile, text: str | None, notes: list[str]) -> dict[str, Any]:
    from stratakv.export.offer import SCHEMA

    return {
        "schema": SCHEMA,
        "profile": profile.name,
        "to": args.to,
        "expressible": text is not None,
        "command": text,
        "notes": notes,
    }
