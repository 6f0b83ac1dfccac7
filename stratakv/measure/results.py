"""The JSON of a measuring run: "stratakv/compare/1" and "stratakv/perplexity/1", and how files are written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from stratakv import __version__
from stratakv.engine.load import LoadedModel
from stratakv.files import check_writable as check_writable
from stratakv.files import write_file as write_file
from stratakv.machine import device_name, machine
from stratakv.measure.corpus import Contexts
from stratakv.measure.far import NOT_ASKED, FarContexts, NoFar, measurable
from stratakv.measure.rows import METRICS_VERSION, likelihood_row, quality_rows
from stratakv.measure.run import Progress, measure
from stratakv.profile import Profile

COMPARE_SCHEMA = "stratakv/compare/1"
PERPLEXITY_SCHEMA = "stratakv/perplexity/1"


def compare(
    loaded: LoadedModel,
    contexts: Contexts,
    profiles: Sequence[Profile],
    reference: Profile,
    *,
    far: FarContexts | NoFar = NOT_ASKED,
    batch: int = 512,
    command: str = "",
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Measure profiles side by side: JSON data, schema "stratakv/compare/1".

    reference: what verdicts are taken against; it is added as a row when none of `profiles` stores the same. far: contexts
    whose far predictions are measured too. batch: tokens a forward call. command: the command line to be named in the result.
    progress: see `measure`.
    """
    profiles = list(profiles)
    index = next((i for i, profile in enumerate(profiles) if profile.storages == reference.storages), len(profiles))
    if index == len(profiles):
        profiles.append(reference)
    far_contexts, told = measurable(loaded, far, batch)
    passes = len(contexts.ids) * (1 + len(profiles))
    total = passes + told["chunks"] * (1 + len(profiles))
    baseline, scores = measure(loaded, contexts, profiles, batch=batch, progress=lambda done, _: progress(done, total))
    measured = None
    if far_contexts:
        measured = (
            far_contexts.context,
            *measure(
                loaded, far_contexts, profiles, batch=batch, progress=lambda done, _: progress(passes + done, total)
            ),
        )
    rows = quality_rows(profiles, scores, baseline, index, contexts.context, measured)
    return {
        "schema": COMPARE_SCHEMA,
        **conditions(loaded, contexts, batch, command, far_contexts),
        "far": told,
        "reference": profiles[index].name,
        "baseline": {"name": "f16", "seconds": baseline.seconds},
        "rows": rows,
    }


def perplexity(
    loaded: LoadedModel,
    contexts: Contexts,
    profile: Profile,
    *,
    divergence: bool = False,
    batch: int = 512,
    command: str = "",
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Measure one profile: JSON data, schema "stratakv/perplexity/1", one row.

    divergence: compare with an f16 cache too; the row then has the fields of a compare row, its own profile being the
    reference of the differences, so `kld_diff` and `verdict` are left out.
    """
    baseline, scores = measure(loaded, contexts, [profile], batch=batch, against=divergence, progress=progress)
    if divergence:
        (row,) = quality_rows([profile], scores, baseline, 0, contexts.context)
        for name in ("kld_diff", "kld_diff_ci95", "verdict", "verdict_kind", "pareto", "far"):
            del row[name]
    else:
        row = likelihood_row(profile, scores[0], contexts.context)
    return {"schema": PERPLEXITY_SCHEMA, **conditions(loaded, contexts, batch, command), "rows": [row]}


def conditions(
    loaded: LoadedModel, contexts: Contexts, batch: int, command: str, far: FarContexts | None = None
) -> dict[str, Any]:
    """What a number needs beside it to be compared with another one."""
    warnings = [*loaded.warnings, *contexts.warnings, *(far.warnings if far else ())]
    dtype: torch.dtype = loaded.model.dtype
    device: torch.device = loaded.model.device
    return {
        "stratakv": __version__,
        "metrics_version": METRICS_VERSION,
        "model": {"name": loaded.name, "fingerprint": loaded.fingerprint},
        "text": {
            "name": contexts.text.name,
            "sha256": contexts.text.sha256,
            "tokens": contexts.tokens,
            "tokens_scored": contexts.scored * len(contexts.ids),
        },
        "context": contexts.context,
        "chunk": min(batch, contexts.context),
        "chunks": len(contexts.ids),
        "compute_dtype": str(dtype).removeprefix("torch."),
        "command": command,
        "machine": machine(),
        **({} if device.type == "cpu" else {"device": device_name(device)}),
        "warnings": warnings,
    }


def write_json(data: dict[str, Any], path: str | Path) -> None:
    """Write JSON in one step. Raises UserError where the file cannot be written, ValueError for nan or infinity."""
    write_file(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())
