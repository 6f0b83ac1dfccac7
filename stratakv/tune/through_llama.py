"""Sensitivities measured inside llama.cpp, as evidence that the allocator, reports and exports read like that of `tune`."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stratakv.engine.describe import describe_model
from stratakv.engine.gguf_file import read_gguf_model
from stratakv.errors import UserError
from stratakv.evidence.tuning import cell_json, evidence_json, point_json, text_json
from stratakv.kvtypes import kv_type
from stratakv.machine import machine
from stratakv.measure.corpus import Text
from stratakv.measure.divergence import predictions
from stratakv.measure.intervals import mean_interval
from stratakv.profile import LayerGeometry, ModelGeometry, Profile, resolve
from stratakv.profile.profile import Pair
from stratakv.tune.allocate import Allocation, Table
from stratakv.tune.llama_probe import LlamaProbe
from stratakv.tune.options import options_for

TYPES = ("q8_0", "turbo4", "turbo3", "turbo2")
_LOSSLESS = "f16"
SIDES = ("k", "v")

Report = Callable[[str], None]


@dataclass(frozen=True)
class Wish:
    """What to measure. context: tokens; chunks: contexts of the text; types: beside f16; budget: a uniform profile whose bytes
    the chosen one may take."""

    context: int = 512
    chunks: int = 4
    types: tuple[str, ...] = TYPES
    budget: str = "turbo4"
    threads: int = 1


def measure_through_llama(
    path: Path, text: Text, wish: Wish, *, name: str, command: str, report: Report = lambda line: None
) -> tuple[Profile, dict[str, Any]]:
    """The best profile under the budget, and the evidence, schema "stratakv/tune/1".

    Each cell (layer, side, type) is the KLD of the second half of each context against the unmodified run, one cell changed at
    a time; a pair's damage is the sum of its two. Raises UserError for what can't be measured so.
    """
    started = time.monotonic()
    probe = LlamaProbe(path, wish.context, wish.threads)
    try:
        geometry, fingerprint, warnings = _geometry(path, probe)
        for layer in geometry.kv_layers:
            for type_ in wish.types:
                for dim in layer.head_dim:
                    kv_type(type_).check(dim)
        tokens = probe.tokenize(text.content)
        pieces = [tokens[i * wish.context : (i + 1) * wish.context] for i in range(wish.chunks)]
        pieces = [piece for piece in pieces if len(piece) == wish.context]
        if not pieces:
            raise UserError(f"the text {text.name} has {len(tokens)} tokens, one context needs {wish.context}")
        if len(pieces) < wish.chunks:
            warnings.append(f"the text has {len(pieces)} contexts, {wish.chunks} were asked for")
        klds = _klds(probe, geometry, pieces, wish.types, report)
    finally:
        probe.close()
    types = (_LOSSLESS, *wish.types)
    cells = np.concatenate([np.zeros((len(klds), len(geometry.kv_layers), 2, 1)), klds], axis=-1)
    mean = cells.mean(axis=0)
    damages = [
        {(k, v): float(layer[0, a] + layer[1, b]) for a, k in enumerate(types) for b, v in enumerate(types)}
        for layer in mean
    ]
    reference = resolve(wish.budget, geometry)
    table = Table(options_for(geometry, damages))
    chosen = table.solve(reference.bytes_per_token)
    seconds, passes = time.monotonic() - started, len(pieces) * (1 + klds[0].size)
    summary = {"through": "llama.cpp", "predicted_kld": chosen.cost, "text": text.name, "context": wish.context}
    profile = Profile(name, geometry, chosen.pairs, fingerprint=fingerprint, evidence=summary)
    evidence = evidence_json(
        profile,
        budget={"text": wish.budget, "bytes_per_token": reference.bytes_per_token, "bpv": reference.bpv},
        types=types,
        effort="sensitivity",
        text=text_json(text.name, text.sha256, context=wish.context, select=len(pieces), validate=0),
        machine=machine(),
        command=command,
        stages={"ablation": (seconds, passes)},
        sensitivity={
            "operating_point": _LOSSLESS,
            "cells": list(_cells(cells, types)),
            "split_half": {"spearman": None, "by_type": {}},
            "agreement": {"by_type": {}, "all": None},
        },
        front=[point_json(Profile("point", geometry, each.pairs), each.cost) for each in table.front()],
        damages=damages,
        told={
            "headroom": _headroom(damages, reference, chosen),
            "fidelity": {"points": [], "r2": None, "bias": None},
        },
        certificate=chosen.certificate,
        chosen={"predicted_kld": chosen.cost, "kld": None, "kld_ci95": None},
        rows=(),
        reference=reference.name,
        warnings=(
            *warnings,
            "a pair's damage is the sum of its K's and its V's, measured around f16; nothing was verified",
        ),
        more={"through": "llama.cpp"},
    )
    return profile, evidence


def _klds(
    probe: LlamaProbe, geometry: ModelGeometry, pieces: list[list[int]], types: tuple[str, ...], report: Report
) -> np.ndarray:
    """Mean KLD of each context, [contexts, kv_layers, 2, types]."""
    layers = geometry.kv_layers
    found = np.zeros((len(pieces), len(layers), 2, len(types)))
    for number, ids in enumerate(pieces):
        reference = predictions(probe.logits(ids, {}))
        for layer in layers:
            assert layer.ordinal is not None
            for side, letter in enumerate(SIDES):
                for column, type_ in enumerate(types):
                    logits = probe.logits(ids, {(layer.layer, letter): type_})
                    kld = predictions(logits, reference).kld
                    assert kld is not None
                    found[number, layer.ordinal, side, column] = kld.mean()
            report(f"context {number + 1} of {len(pieces)}, KV layer {layer.ordinal + 1} of {len(layers)}")
    return found


def _geometry(path: Path, probe: LlamaProbe) -> tuple[ModelGeometry, str, list[str]]:
    """transformers' view of the model where it has one, so that the profile fits our engine too; else llama.cpp's nodes."""
    seen = sorted({layer for layer, _ in probe.shapes})
    try:
        description = describe_model(path)
    except UserError:
        header = read_gguf_model(path)
        layers = tuple(
            LayerGeometry(
                layer,
                ordinal,
                "full",
                (probe.shapes[layer, "k"][0], probe.shapes[layer, "v"][0]),
                probe.shapes[layer, "k"][1],
                probe.shapes[layer, "k"][1],
            )
            for ordinal, layer in enumerate(seen)
        )
        shape = json.dumps([asdict(layer) for layer in layers], sort_keys=True)
        digest = hashlib.sha256(f"{header.architecture}\n{shape}\n{header.tensors_digest}".encode()).hexdigest()
        words = (
            f"transformers doesn't read architecture {header.architecture!r}: windows of sliding layers are not known"
        )
        return ModelGeometry(path.stem, layers), digest, [words]
    kept = [layer.layer for layer in description.geometry.kv_layers]
    if kept != seen:
        raise UserError(f"{path}: llama.cpp has K and V in layers {seen}, transformers in {kept}")
    return description.geometry, description.fingerprint, list(description.warnings)


def _cells(cells: np.ndarray, types: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for ordinal, side, column in np.ndindex(cells.shape[1:]):
        values = cells[:, ordinal, side, column]
        yield cell_json(
            ordinal,
            SIDES[side],
            types[column],
            kld=float(values.mean()),
            interval=mean_interval(values),
            gradient=None,
        )


def _headroom(damages: list[dict[Pair, float]], reference: Profile, chosen: Allocation) -> dict[str, Any]:
    try:
        uniform = sum(known[pair] for known, pair in zip(damages, reference.pairs, strict=True))
    except KeyError:
        return {"gain": 0.0, "words": f"{reference.name} was not measured itself"}
    gain = 1 - chosen.cost / uniform if uniform else 0.0
    return {
        "gain": gain,
        "words": f"predicted KLD {gain:.0%} below uniform {reference.name} at its bytes, not verified",
    }
