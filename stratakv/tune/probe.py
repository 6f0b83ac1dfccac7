"""What is known to break under quantized caches, looked for in weights and states within a minute, told in words.

Signs: keys much longer than values and a biased k_proj (Qwen2.5: K at 4 bits ruins it, K at 8 bits with V at 4 doesn't),
learned attention sinks in the weights, and single layers whose turbo4 alone costs more than a model should lose in all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.kvtypes import kv_type
from stratakv.measure.divergence import Floats
from stratakv.profile import resolve
from stratakv.tune.forward import forward_damage
from stratakv.tune.gradient import NotDifferentiableError, gradient_damage
from stratakv.tune.memory import check_gradient_memory
from stratakv.tune.replay import Replay

SCHEMA = "stratakv/probe/1"
NORM_RATIO = 10.0  # of mean key to mean value norms in a layer; Qwen2.5's first layers have far more
BIAS_SHARE = 0.5  # of the key's norm that is its bias
KLD_LIMIT = 0.02  # nats, of one cell alone: more than a whole 4-bit cache costs a model that takes it well
MEASURED = 8  # cells at most, those that are predicted to be worst
_TYPE = "turbo4"
_FALLBACK = "q4_0_rot"


def probe(
    loaded: LoadedModel,
    ids: torch.Tensor,
    *,
    limit: float = KLD_LIMIT,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """JSON data, schema "stratakv/probe/1", from a few contexts.

    ids: int64 [contexts, context]. limit: nats; of the cells predicted above half of it the MEASURED worst are measured.
    Gradients find them, so that a model of any depth takes three forward passes a context and a few where something is wrong;
    "rough" says why where there are none, and forward passes alone did. UserError where memory is short.
    """
    layers = loaded.geometry.kv_layers
    name = _TYPE if _storable(loaded, _TYPE) else _FALLBACK
    check_gradient_memory(loaded, ids.shape[1], 1)
    norms = _norms(loaded, ids[0])
    total = 2 * len(ids) + 2
    damage, rough = list[Floats](), None
    for index, each in enumerate(ids):
        if rough is None:
            try:
                damage.append(gradient_damage(loaded, each, (name,), 1, seed=index)[..., 0])
            except NotDifferentiableError as error:
                rough = str(error)
        if rough is not None:
            damage.append(forward_damage(loaded, each, (name,))[..., 0])
        progress(index + 1, total)
    predicted = np.mean(damage, axis=0)
    replay = Replay(loaded, ids)
    f16 = resolve("f16", loaded.geometry)
    uniform = float(replay.kld(resolve(name, loaded.geometry)).mean())
    progress(len(ids) + 1, total)
    replay.record(f16)
    cells = _dangerous(replay, predicted, name, limit)
    progress(total, total)
    sinks = _sinks(loaded)
    biased = _biased(loaded, norms)
    rows = [
        {
            "ordinal": layer.ordinal,
            "layer": layer.layer,
            "k_norm": float(norms[i, 0]),
            "v_norm": float(norms[i, 1]),
            "ratio": float(norms[i, 0] / max(norms[i, 1], 1e-9)),
            "k_bias_share": biased.get(layer.layer),
            "k_damage": float(predicted[i, 0]),
            "v_damage": float(predicted[i, 1]),
        }
        for i, layer in enumerate(layers)
    ]
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "model": {"name": loaded.name, "fingerprint": loaded.fingerprint},
        "type": name,
        "limit": limit,
        "uniform_kld": uniform,
        "rough": rough,
        "layers": rows,
        "sinks": sinks,
        "dangerous": cells,
    }
    data["findings"] = findings(data)
    data["recommendation"] = recommendation(data)
    return data


def findings(data: Mapping[str, Any]) -> list[str]:
    """What was found, a sentence each; empty when nothing was."""
    told = []
    high = [row for row in data["layers"] if row["ratio"] > NORM_RATIO]
    if high:
        worst = max(high, key=lambda row: row["ratio"])
        told.append(
            f"keys are much longer than values in {len(high)} of {len(data['layers'])} KV layers (KV layer {worst['ordinal']}: "
            f"{worst['ratio']:.0f} times): coarse keys change every score there"
        )
    biased = [row for row in data["layers"] if (row["k_bias_share"] or 0) > BIAS_SHARE]
    if biased:
        worst = max(biased, key=lambda row: row["k_bias_share"])
        told.append(
            f"k_proj has a large bias in {len(biased)} KV layers (KV layer {worst['ordinal']}: {worst['k_bias_share']:.0%} of "
            "the keys' norm): most of a key's code is spent on what all keys share"
        )
    if data["sinks"]:
        told.append(
            f"attention sinks are in the weights of {len(data['sinks'])} layers: they are kept and computed as they are"
        )
    told += [
        f"KV layer {cell['ordinal']}, {cell['side'].upper()}: {data['type']} there alone costs a KLD of {cell['kld']:.3g}, above "
        f"{data['limit']:g}"
        for cell in data["dangerous"]
    ]
    return told


def recommendation(data: Mapping[str, Any]) -> str:
    """One sentence on what to do."""
    tune = "let stratakv tune find the cheapest mix"
    cells = data["dangerous"]
    if cells and len(cells) <= max(2, len(data["layers"]) // 8):
        names = {"k": "q8_0/" + data["type"], "v": data["type"] + "/q8_0"}
        clauses = "; ".join(f"{cell['ordinal']}: {names[cell['side']]}" for cell in cells)
        return f'give these cells 8 bits, as in --profile "{clauses}; rest: {data["type"]}", or {tune}'
    k = sum(row["k_damage"] for row in data["layers"])
    v = sum(row["v_damage"] for row in data["layers"])
    if cells or data["findings"] or data["uniform_kld"] > data["limit"]:
        side = f"q8_0/{data['type']}" if k > v else f"{data['type']}/q8_0"
        share = f"{k / (k + v):.0%} of the damage is K's"
        return f"don't use uniform {data['type']} unmeasured: start from {side} ({share}), or {tune}"
    return f"nothing dangerous: uniform {data['type']} costs a KLD of {data['uniform_kld']:.3g} here; {tune} at the same bytes"


def format_probe(data: Mapping[str, Any]) -> str:
    """A table of the layers, the findings, the recommendation."""
    lines = [f"{data['model']['name']}: predicted KLD, 1e-3 nats, of {data['type']} in one layer's K or V alone"]
    lines.append(f"{'KV layer':>8}  {'K':>8}  {'V':>8}  {'|K| / |V|':>9}")
    lines += [
        f"{row['ordinal']:>8}  {1e3 * row['k_damage']:>8.3f}  {1e3 * row['v_damage']:>8.3f}  {row['ratio']:>9.1f}"
        for row in data["layers"]
    ]
    if data["rough"]:
        lines.append(
            f"rougher than usual: this model can't be differentiated ({data['rough']}), forward passes compared layers"
        )
    lines.append(f"uniform {data['type']}: KLD {data['uniform_kld']:.3g} (measured)")
    lines += [f"found: {each}" for each in data["findings"]] or ["found: none of the known dangers"]
    lines.append(f"recommendation: {data['recommendation']}")
    return "\n".join(lines)


def _storable(loaded: LoadedModel, name: str) -> bool:
    try:
        for dim in {dim for layer in loaded.geometry.kv_layers for dim in layer.head_dim}:
            kv_type(name).check(dim)
    except UserError:
        return False
    return True


def _norms(loaded: LoadedModel, ids: torch.Tensor) -> Floats:
    """Mean norm of the stored K and V vectors, [kv_layers, 2]."""
    model: Any = loaded.model
    norms: dict[int, tuple[float, float]] = {}
    cache = DynamicCache(config=model.config)
    for layer in loaded.geometry.kv_layers:
        _watch(cache.layers[layer.layer], layer.layer, norms)
    with torch.inference_mode():
        model(input_ids=ids[None].to(model.device), past_key_values=cache, use_cache=True)
    return np.array([norms[layer.layer] for layer in loaded.geometry.kv_layers])


def _watch(layer: Any, index: int, norms: dict[int, tuple[float, float]]) -> None:
    update = layer.update

    def watched(key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        k, v = (float(x.float().norm(dim=-1).mean()) for x in (key_states, value_states))
        norms[index] = k, v
        return update(key_states, value_states, *args, **kwargs)

    layer.update = watched


def _dangerous(replay: Replay, predicted: Floats, name: str, limit: float) -> list[dict[str, Any]]:
    """Cells whose type alone costs more than the limit, all else f16, measured; the worst first."""
    geometry = replay.loaded.geometry
    found = []
    near = sorted(np.argwhere(predicted > limit / 2).tolist(), key=lambda cell: -predicted[cell[0], cell[1]])
    for i, side in near[:MEASURED]:
        pair = (name, "f16") if side == 0 else ("f16", name)
        text = f"{i}: {'/'.join(pair)}; rest: f16"
        kld = float(replay.kld(resolve(text, geometry)).mean())
        if kld > limit:
            found.append({"ordinal": i, "side": "kv"[side], "kld": kld, "predicted": float(predicted[i, side])})
    return sorted(found, key=lambda cell: -cell["kld"])


def _sinks(loaded: LoadedModel) -> list[int]:
    """Layers whose attention has learned sinks."""
    return sorted(
        {int(part) for name, _ in loaded.model.named_parameters() if name.rsplit(".", 1)[-1] == "sinks"
         for part in name.split(".") if part.isdigit()}
    )  # fmt: skip


def _biased(loaded: LoadedModel, norms: Floats) -> dict[int, float]:
    """By model layer, the norm of k_proj's bias a head over the mean key's norm."""
    heads = {layer.layer: (i, layer.kv_heads) for i, layer in enumerate(loaded.geometry.kv_layers)}
    found = {}
    for name, parameter in loaded.model.named_parameters():
        parts: Sequence[str] = name.split(".")
        index = next((int(part) for part in parts if part.isdigit()), None)
        if name.endswith("k_proj.bias") and index in heads:
            row, kv_heads = heads[index]
            by_head = parameter.detach().float().view(kv_heads, -1).norm(dim=-1).mean()
            found[index] = float(by_head) / max(float(norms[row, 0]), 1e-9)
    return found
