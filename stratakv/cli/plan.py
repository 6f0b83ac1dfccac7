"""`stratakv plan`: of memory, context and quality any two give the third: a table, and one command to run.

Bytes come from the model's shape (layers, heads, sliding windows, whole pages) and are exact; no weights are read. Quality is
only known where it was measured: with --evidence, the file that `tune` writes beside a profile.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stratakv.cli.model_option import add_model_option
from stratakv.cli.profile_options import add_span_options, sizes_from_args
from stratakv.cli.sizes import parse_memory, parse_tokens
from stratakv.errors import UserError
from stratakv.sizes import size_text

if TYPE_CHECKING:
    from stratakv.engine.describe import ModelDescription
    from stratakv.plan import Candidate, Wish

_MOST_ROWS = 14
_BYTES = {"f32": 4, "bf16": 2, "f16": 2}


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "plan",
        help="of memory, context and quality any two give the third",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_option(parser)
    parser.add_argument("--memory", metavar="SIZE", help="for the cache alone, such as 2GiB, 512MiB, 2GB")
    parser.add_argument(
        "--with-weights", action="store_true", help="--memory is for the weights and the cache together (cache alone)"
    )
    parser.add_argument(
        "-c",
        "--context",
        "--ctx-size",
        metavar="N",
        help="tokens of a sequence, such as 131072 or 128k (the model's own)",
    )
    parser.add_argument(
        "-np", "--parallel", type=int, default=1, metavar="N", help="sequences of that length at once (1)"
    )
    parser.add_argument("--quality", type=float, metavar="KLD", help="at most this mean KLD in nats; needs --evidence")
    parser.add_argument("--evidence", metavar="FILE", help="NAME.evidence.json of this model, written by `tune`")
    add_span_options(parser)
    parser.add_argument("--dtype", choices=list(_BYTES), default="f32", help="of weights that are unpacked (f32)")
    parser.add_argument("--json", action="store_true", help="print JSON (schema stratakv/plan/1)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from stratakv.engine.describe import describe_model
    from stratakv.engine.size import stays_packed, weights_size
    from stratakv.evidence import read_evidence
    from stratakv.plan import front_candidates, plan, usual_candidates
    from stratakv.profile.spread import layer_spans_from_json

    wish, sizes = _wish(args), sizes_from_args(args)
    evidence = None if args.evidence is None else read_evidence(args.evidence)
    model = describe_model(args.model)
    weights = weights_size(model, _BYTES[args.dtype])
    held = "in the file's blocks" if stays_packed(model) else f"in {args.dtype}"
    if args.with_weights:
        wish = replace(wish, memory=_left(wish.memory, weights, held))
    if evidence is None:
        candidates = usual_candidates(model.geometry, sizes, wish)
    else:
        _check_model(evidence, model, args.evidence)
        tuned = layer_spans_from_json(evidence.get("spans"))
        candidates = front_candidates(evidence["front"], model.geometry, tuned, sizes)
    known = candidates[0].kld is not None
    if evidence is not None and not known and wish.quality is not None:
        raise UserError(f"--quality {wish.quality:g}: {_other_spans(args, evidence)}")
    data = plan(candidates, wish)
    data |= {
        "weights_bytes": weights,
        "weights_held": held,
        "memory_means": "weights and cache" if args.with_weights else "cache",
        "evidence": args.evidence,
        "warnings": [
            *model.warnings,
            *_warnings(data),
            *([] if known or evidence is None else [_other_spans(args, evidence)]),
        ],
        "command": _command(args.model, data, _bare(candidates)),
        "measure_command": None if known else _measure_command(args, data),
    }
    print(json.dumps(data, indent=1) if args.json else format_plan(data))
    return 0


def format_plan(data: dict[str, Any]) -> str:
    """The whole answer as text, from the JSON data alone."""
    context = data["context"]
    header = ["", "profile", "bpv", "bytes/token", "KLD, 1e-3"]
    header.append(f"cache at {context:,} tokens" if context else "")
    header.append(f"longest in {size_text(data['memory'])}" if data["memory"] else "")
    cells = [header]
    for index in _shown(data):
        row = data["rows"][index]
        longest = "" if row["max_context"] is None else f"{row['max_context']:,}"
        cells.append(
            [
                ">" if index == data["recommended"] else "",
                row["name"],
                f"{row['bpv']:.3f}",
                f"{row['bytes_per_token']:,}",
                _quality(row),
                ("" if row["cache_bytes"] is None else size_text(row["cache_bytes"]))
                + ("" if row["fits"] is not False else " too much"),
                "no limit" if row["max_context_unlimited"] else longest,
            ]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            if width
        ).rstrip()
        for row in cells
    ]
    return "\n".join(
        [
            _title(data),
            *_spans(data),
            *aligned,
            *_answer(data),
            *([] if data["measure_command"] is None else _unknown(data)),
            *_footer(data),
        ]
    )


def _quality(row: dict[str, Any]) -> str:
    """KLD in 1e-3 and where it is from. Far from where it was measured a prediction can be 0, which no type is but f32."""
    from stratakv.measure.table import milli

    if row["kld"] is None:
        return "unknown"
    if row["kld_measured"]:
        return f"{milli(row['kld'])} measured"
    return f"{milli(row['kld'])} predicted" if row["kld"] > 0 else "near 0 predicted"


def _title(data: dict[str, Any]) -> str:
    each = f", {data['sequences']} sequences" if data["sequences"] > 1 else ""
    weights = f"weights {size_text(data['weights_bytes'])} {data['weights_held']}"
    if data["memory"] is None:
        return f"{data['model']}: {weights}{each}"
    counted = (
        "after the weights"
        if data["memory_means"] == "weights and cache"
        else "for the cache alone, beside the weights"
    )
    return f"{data['model']}: {size_text(data['memory'])} {counted}; {weights}{each}"


def _answer(data: dict[str, Any]) -> list[str]:
    if data["recommended"] is None:
        if data["memory"] is None:
            return ["", "give --memory too, and the profile that fits is named"]
        return ["", f"nothing fits at the model's own {data['context']:,} tokens: give --context, or more memory"]
    row = data["rows"][data["recommended"]]
    facts = [f"{row['bytes_per_token']:,} bytes a token"]
    if row["cache_bytes"] is not None:
        facts.append(f"{size_text(row['cache_bytes'])} of pages at {data['context']:,} tokens")
    if row["max_context"] is not None:
        facts.append("no limit of length" if row["max_context_unlimited"] else f"at most {row['max_context']:,} tokens")
    if row["kld"] is not None:
        facts.append(f"KLD, 1e-3 nats: {_quality(row)}, on the tuning text")
    return ["", f"> {row['name']}: {', '.join(facts)}", f"  {data['command']}"]


def _unknown(data: dict[str, Any]) -> list[str]:
    so = " with these spans" if data["evidence"] else ""
    return [
        "",
        f"quality is unknown, nothing was measured on this model{so}; to measure it:",
        f"  {data['measure_command']}",
    ]


def _shown(data: dict[str, Any]) -> list[int]:
    """At most _MOST_ROWS rows of a long front: evenly, the recommended one and its neighbours in any case."""
    count, chosen = len(data["rows"]), data["recommended"]
    if count <= _MOST_ROWS:
        return list(range(count))
    near = () if chosen is None else range(max(0, chosen - 1), min(count, chosen + 2))
    evenly = (round(i * (count - 1) / (_MOST_ROWS - 3)) for i in range(_MOST_ROWS - 2))
    return sorted({*near, *evenly})


def _wish(args: argparse.Namespace) -> Wish:
    from stratakv.plan import Wish

    memory = None if args.memory is None else parse_memory(args.memory, "--memory")
    context = None if args.context is None else parse_tokens(args.context, "--context")
    if args.parallel < 1:
        raise UserError(f"-np {args.parallel}: at least 1 sequence")
    if args.quality is not None and not (math.isfinite(args.quality) and args.quality > 0):
        raise UserError(f"--quality {args.quality}: a KLD in nats above 0, such as 0.003")
    if args.quality is not None and args.evidence is None:
        raise UserError(
            "--quality needs --evidence FILE: what a KLD costs in bytes is unknown for a model until it is measured; "
            f"{_tuning(args.model, '--budget turbo4')}"
        )
    if args.with_weights and memory is None:
        raise UserError("--with-weights says what --memory means: give --memory too")
    return Wish(memory, context, args.quality, args.parallel)


def _left(memory: int | None, weights: int, held: str) -> int:
    assert memory is not None
    if memory <= weights:
        raise UserError(
            f"--memory {size_text(memory)} with --with-weights: the weights alone take {size_text(weights)} {held}; give "
            "more memory, a smaller --dtype or a smaller model"
        )
    return memory - weights


def _check_model(evidence: dict[str, Any], model: ModelDescription, path: str) -> None:
    theirs = evidence["model"]["fingerprint"]
    if theirs and theirs != model.fingerprint:
        raise UserError(
            f"{path} is of the model {evidence['model']['name']}, fingerprint {theirs[:16]}; the model at hand is {model.name}, "
            f"{model.fingerprint[:16]}: give the evidence of this model"
        )


def _other_spans(args: argparse.Namespace, evidence: dict[str, Any]) -> str:
    """Why KLDs are unknown though there is evidence, and what makes them known."""
    from stratakv.profile.spans import NONE
    from stratakv.profile.spread import layer_spans_from_json, layer_spans_text

    tuned = layer_spans_from_json(evidence.get("spans"))
    asked = (NONE if isinstance(tuned, tuple) else tuned).having(sizes_from_args(args))
    words = [
        f" --{word} {pages}:{type_}"
        for word, pages, type_ in (
            ("recent", asked.recent, asked.recent_type),
            ("first", asked.first, asked.first_type),
        )
        if pages
    ]
    return (
        f"the KLDs in {args.evidence} are of {layer_spans_text(tuned) or 'no spans'}, with {asked.text() or 'no spans'} they are "
        "unknown: "
        f"leave --recent and --first out, or {_tuning(args.model, '--budget turbo4' + ''.join(words))}"
    )


def _spans(data: dict[str, Any]) -> list[str]:
    """Which spans are counted, and in which profiles."""
    from stratakv.profile.spans import Spans, spans_text

    texts = [
        spans_text([Spans(**each) if each else Spans() for each in row["spans"]])
        for row in data["rows"]
        if any(row["spans"])
    ]
    if not texts:
        return []
    without = [row["name"] for row in data["rows"] if not any(row["spans"])]
    but = f" (not in {', '.join(without)})" if without else ""
    return [f"the cache's size counts spans, bpv and bytes/token don't: {max(texts, key=texts.count)}{but}"]


def _warnings(data: dict[str, Any]) -> list[str]:
    context, limit = data["context"], data["model_context"]
    longest = None if data["recommended"] is None else data["rows"][data["recommended"]]["max_context"]
    if 0 < limit < (context or 0):
        return [f"context {context:,} is beyond the model's {limit:,}: quality falls there whatever the types"]
    if context is None and longest is not None and 0 < limit < longest:
        return [f"the model was trained for {limit:,} tokens: quality falls beyond, whatever the types"]
    return []


def _bare(candidates: Sequence[Candidate]) -> set[str]:
    """Names of the profiles without the spans that `serve` would give them."""
    from stratakv.profile.parse import with_default_spans

    return {each.profile.name for each in candidates if with_default_spans(each.profile) is not each.profile}


def _command(model: str, data: dict[str, Any], bare: set[str]) -> str | None:
    """What to run with the recommended profile: a server for so many tokens. bare: see _bare."""
    from stratakv.pages.layout import PAGE_TOKENS

    if data["recommended"] is None:
        return None
    row, limit = data["rows"][data["recommended"]], data["model_context"]
    tokens = data["context"] or row["max_context"]
    if row["max_context_unlimited"] or 0 < limit < tokens:
        tokens = data["context"] if data["context_given"] else limit
    words = ["stratakv", "serve", "-m", model, "--profile", row["rule_line"]]
    if tokens and data["sequences"] > 1:
        tokens = -(-tokens // PAGE_TOKENS) * PAGE_TOKENS * data["sequences"]  # no page has two owners
    words += ["-c", str(tokens)] if tokens else []
    words += ["-np", str(data["sequences"])]
    return shlex.join([*words, "--recent", "0"] if row["name"] in bare else words)


def _measure_command(args: argparse.Namespace, data: dict[str, Any]) -> str:
    """The command that makes quality known."""
    chosen = data["recommended"]
    rows = data["rows"] if chosen is None else data["rows"][max(0, chosen - 1) : chosen + 3]
    return shlex.join(
        ["stratakv", "compare", "-m", args.model, "-f", "TEXT", "-c", "2048", *(row["rule_line"] for row in rows)]
    )


def _tuning(model: str, budget: str) -> str:
    return f"run 'stratakv tune -m {model} {budget}' first"


def _footer(data: dict[str, Any]) -> list[str]:
    return [f"warning: {warning}" for warning in data["warnings"]]
