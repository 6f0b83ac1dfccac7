"""What a profile chosen from gradients alone loses against one chosen from measured cells, at the same bytes.

Both are solved by `stratakv.tune.allocate` with the same types and budget, from the first two thirds of the tuning text; KLD is
then compared, paired, on the last third, which neither has seen. Measurements are kept in --runs: killed, it goes on.

python benchmarks/gradients_against_ablation.py -m embedded [--profile tuned-4.125.profile.json] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from stratakv.assets import tuning_text
from stratakv.engine.load import load_model
from stratakv.files import write_file
from stratakv.measure.corpus import cut, read_text
from stratakv.measure.divergence import Floats
from stratakv.measure.intervals import change_interval
from stratakv.measure.rows import quality_rows
from stratakv.profile import Profile, load_profile, resolve
from stratakv.profile.profile import pair_text
from stratakv.profile.spans import NONE
from stratakv.tune.effort import EFFORTS
from stratakv.tune.measurer import Measurer, Pairs
from stratakv.tune.problem import Problem
from stratakv.tune.scores import kept_scores
from stratakv.tune.sensitivity import Sensitivity, agreement, by_ablation, by_gradient, split_half
from stratakv.tune.split import open_store, split_contexts

TYPES = ("turbo2", "turbo3", "turbo4", "turbo5", "turbo6", "q8_0")


def solved(problem: Problem, added: Floats) -> Pairs:
    """The best assignment when cells [kv_layers, 2, types] add up."""
    table = [
        {(k, v): float(row[0, a] + row[1, b]) for a, k in enumerate(TYPES) for b, v in enumerate(TYPES)}
        for row in added
    ]
    return problem.solve(table).pairs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="embedded")
    parser.add_argument("-c", "--ctx-size", type=int, default=512)
    parser.add_argument("--ablation-contexts", type=int, default=24)
    parser.add_argument("--profile", help="a tuned one to compare too")
    parser.add_argument("--runs", default="stratakv-runs")
    parser.add_argument("--json")
    args = parser.parse_args()

    loaded = load_model(args.model)
    text = read_text(tuning_text())
    contexts = cut(text, loaded.tokenizer, args.ctx_size, None, loaded.geometry.context)
    split = split_contexts(contexts, replace(EFFORTS["quick"], validate_contexts=1 << 20))
    reference = resolve("turbo4", loaded.geometry)
    problem = Problem(loaded.geometry, reference.bytes_per_token, types=TYPES)
    store = open_store(loaded, contexts, Path(args.runs), "select")
    measurer = Measurer(loaded, split.select, store)

    found: dict[str, Pairs] = {}
    by_count: dict[int, Sensitivity] = {}
    for count in dict.fromkeys((1, 8, args.ablation_contexts)):
        by_count[count] = by_gradient(measurer, TYPES, reference.pairs, count, 2, [NONE])[NONE]
        found[f"gradients of {count}"] = solved(problem, by_count[count].predicted)
    batches = range(args.ablation_contexts // measurer.batch)
    ablated = by_ablation(measurer, by_count[args.ablation_contexts], TYPES, batches)
    assert ablated.added is not None
    found[f"ablation of {len(ablated.added)}"] = solved(problem, ablated.added.mean(axis=0))
    profiles = [Profile(name, loaded.geometry, pairs) for name, pairs in found.items()]
    if args.profile:
        profiles.append(load_profile(args.profile, loaded.geometry, loaded.fingerprint))
    profiles.append(reference)

    kept = open_store(loaded, contexts, Path(args.runs), f"validate {len(split.validate.ids)}")
    baseline, scores = kept_scores(loaded, split.validate, profiles, kept, batch=args.ctx_size)
    rows = quality_rows(profiles, scores, baseline, len(profiles) - 1, args.ctx_size)
    lines = []
    for profile, row in zip(profiles, rows, strict=True):
        others = {}
        for other in rows:
            change = row["kld_mean"] / other["kld_mean"] - 1
            others[other["name"]] = [change, *(change_interval(row["kld_per_chunk"], other["kld_per_chunk"]) or ())]
        lines.append(
            {
                "name": row["name"],
                "pairs": list(map(pair_text, profile.pairs)),
                "bytes_per_token": row["bytes_per_token"],
                "kld": row["kld_mean"],
                "kld_ci95": row["kld_mean_ci95"],
                "change_against": others,
            }
        )
    result = {
        "model": loaded.geometry.name,
        "text": text.name,
        "context": args.ctx_size,
        "contexts": len(split.validate.ids),
        "forward_passes": {name: cost.passes for name, cost in measurer.costs.items()},
        "agreement": agreement(ablated),
        "split_half": split_half(ablated),
        "profiles": lines,
    }
    for line in lines:
        print(f"{line['name']:18} {line['bytes_per_token']:6,} {1e3 * line['kld']:.3f}  {' '.join(line['pairs'])}")
        for name, (change, *ends) in line["change_against"].items():
            print(f"    {change:+.1%} [{', '.join(f'{end:+.1%}' for end in ends)}] against {name}")
    print(f"rank correlation with ablation {result['agreement']}; of its halves {result['split_half']['by_type']}")
    print(f"forward passes {result['forward_passes']}")
    if args.json:
        write_file(Path(args.json), (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
