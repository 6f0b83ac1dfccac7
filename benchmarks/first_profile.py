"""What the profile of `tune --effort first` loses against one from many more passes, at the same bytes.

Both are solved by `stratakv.tune.allocate` among all types that the model can store, from the tuning text; KLD is then compared,
paired, on another text. Measurements are kept in --runs: killed, it goes on.

python benchmarks/first_profile.py -m embedded -f TEXT [--dear 24] [--profile FILE] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from stratakv.assets import tuning_text
from stratakv.engine.load import load_model
from stratakv.files import write_file
from stratakv.measure.corpus import cut, read_text
from stratakv.measure.intervals import change_interval
from stratakv.measure.rows import quality_rows
from stratakv.profile import Profile, load_profile, resolve
from stratakv.profile.profile import pair_text
from stratakv.profile.spans import NONE
from stratakv.tune.effort import EFFORTS
from stratakv.tune.measurer import Measurer, Pairs
from stratakv.tune.problem import Problem
from stratakv.tune.scores import kept_scores
from stratakv.tune.sensitivity import Sensitivity, by_gradient
from stratakv.tune.split import open_store, split_contexts
from stratakv.tune.types import allowed_types, useful_types


def solved(problem: Problem, found: Sensitivity, start: Pairs) -> Pairs:
    """As `tune` does it: types near the hull, the sides of a layer added up."""
    mean = found.damage.mean(axis=0)
    kept = useful_types(problem.geometry, found.types, mean, start)
    at = {name: found.types.index(name) for name in kept}
    table = [{(k, v): float(row[0, at[k]] + row[1, at[v]]) for k in kept for v in kept} for row in mean]
    return problem.solve(table).pairs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="embedded")
    parser.add_argument("-f", "--text", required=True, help="to compare on")
    parser.add_argument("-c", "--ctx-size", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=16, help="contexts to compare on")
    parser.add_argument(
        "--dear", type=int, default=24, help="contexts of the other profile's gradients, two draws each"
    )
    parser.add_argument("--profile", action="append", default=[], help="a tuned one to compare too")
    parser.add_argument("--runs", default="stratakv-runs")
    parser.add_argument("--json")
    args = parser.parse_args()

    loaded = load_model(args.model)
    contexts = cut(read_text(tuning_text()), loaded.tokenizer, args.ctx_size, None, loaded.geometry.context)
    effort = EFFORTS["first"].at(args.ctx_size)
    select = split_contexts(contexts, effort).select
    types = allowed_types(loaded.geometry, None)
    reference = resolve("turbo4", loaded.geometry)
    problem = Problem(loaded.geometry, reference.bytes_per_token)
    store = open_store(loaded, contexts, Path(args.runs), "select")
    dear = min(args.dear, len(select))
    passes, profiles = {}, []
    for name, count, draws in (("first", effort.gradient_contexts, effort.draws), (f"{dear} contexts", dear, 2)):
        measurer = Measurer(loaded, select, store)
        found = by_gradient(measurer, types, reference.pairs, count, draws, [NONE])[NONE]
        passes[name] = measurer.costs["gradient"]
        profiles.append(Profile(name, loaded.geometry, solved(problem, found, reference.pairs)))
    profiles += [load_profile(path, loaded.geometry, loaded.fingerprint) for path in args.profile]
    profiles.append(reference)

    judged = cut(read_text(args.text), loaded.tokenizer, args.ctx_size, args.chunks, loaded.geometry.context)
    kept = open_store(loaded, judged, Path(args.runs), f"judged {len(judged.ids)}")
    baseline, scores = kept_scores(loaded, judged, profiles, kept, batch=args.ctx_size)
    rows = quality_rows(profiles, scores, baseline, len(profiles) - 1, args.ctx_size)
    lines = []
    for profile, row in zip(profiles, rows, strict=True):
        ratio = rows[0]["kld_mean"] / row["kld_mean"] - 1
        change = [ratio, *(change_interval(rows[0]["kld_per_chunk"], row["kld_per_chunk"]) or ())]
        spent = passes.get(row["name"])
        lines.append(
            {
                "name": row["name"],
                "pairs": list(map(pair_text, profile.pairs)),
                "bytes_per_token": row["bytes_per_token"],
                "passes": spent and spent.passes,
                "seconds": spent and spent.seconds,
                "kld": row["kld_mean"],
                "kld_ci95": row["kld_mean_ci95"],
                "first_against_it": change,
            }
        )
    result = {
        "model": loaded.geometry.name,
        "text": Path(args.text).name,
        "context": args.ctx_size,
        "contexts": len(judged.ids),
        "profiles": lines,
    }
    for line in lines:
        change, *ends = line["first_against_it"]
        told = f"{change:+.1%} [{', '.join(f'{end:+.1%}' for end in ends)}]"
        took = f"{line['passes']:g} passes, {line['seconds']:.1f} s" if line["passes"] else ""
        print(
            f"{line['name']:14} {line['bytes_per_token']:6,} {1e3 * line['kld']:.3f}  first against it {told}  {took}"
        )
        print(f"    {' '.join(line['pairs'])}")
    if args.json:
        write_file(Path(args.json), (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
