"""Steps of a few tokens through all decoder layers in one compiled call: projections, storing, attention and MLPs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils import output_capturing

from stratakv.kernels.cpu.kernel import CpuKernel
from stratakv.kernels.cpu.layout import compiled
from stratakv.kernels.cpu.split import Split, address
from stratakv.kernels.native import native
from stratakv.kernels.placing import Placed, PlacingLayer
from stratakv.weights.angles import Angles
from stratakv.weights.fused_layer import FusedLayer
from stratakv.weights.parts import UnknownPartError, norm

# Of a step's table, a row a layer: addresses of cos and sin, and Split.numbers: those of the step, then base and stride of a pool
# and what queries see of it; those twice, of pages that are written and of sealed ones; then which pages are to be sealed
_COLUMNS = 2 + 4 + 2 * (2 + 4) + 2
_OWN = [6, 7, 12, 13, 18, 19]  # a layer's own: both pools, and what is to be sealed; layers share the others
# What a call may say that changes nothing in a step
_HARMLESS = {"use_cache", "return_dict", "cache_position", "logits_to_keep"}


class LastNorm:
    """The base model's norm after its last layer, compiled. `forward` takes the place of the module's, so that a token's logits
    are rounded alike whether its step is one call or not."""

    def __init__(self, module: Any) -> None:
        self._original, self._norm = module.forward, norm(module)
        self._weight = torch.tensor(self._norm.weight)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """As the module's."""
        x = hidden_states
        if x.dtype != torch.float32 or x.device.type != "cpu" or (torch.is_grad_enabled() and x.requires_grad):
            out: torch.Tensor = self._original(x)
            return out
        return self.normed(x.contiguous())

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        """x: float32 [.., width], contiguous."""
        module: Any = native()
        out, width = torch.empty_like(x), x.shape[-1]
        addresses = x.data_ptr(), self._weight.data_ptr(), self._norm.epsilon, x.numel() // width, width, out.data_ptr()
        module.rms_norm(*addresses, torch.get_num_threads())
        return out


class Stack:
    """The decoder of a model whose layers are all fused. `forward` takes the place of the base model's."""

    def __init__(self, base: Any, fused: list[FusedLayer]) -> None:
        module: Any = native()
        self.base, self.fused, self.original = base, fused, base.forward
        self.output: type | None = None
        self.norm = LastNorm(base.norm)
        self.layers = module.PackedLayers([one.parts.compiled for one in fused])
        self.multiplier = float(getattr(base, "embedding_multiplier", 1.0))
        self._angles = Angles(base.rotary_emb)
        types = getattr(base.config, "layer_types", None)
        self.types = list(types) if self._angles.by_type and types else [None] * len(fused)
        # the layers after which something runs in Python
        self.stops = [i + 1 for i, one in enumerate(fused) if one.parts.mlp is not None]
        if len({one.parts.dim for one in fused}) > 1:
            raise UnknownPartError("heads of different sizes have angles of different sizes")
        if any(one.parts.tail is not None or one.parts.shares is not None for one in fused):
            raise UnknownPartError("layers with inputs of their own, or others' K and V, run one by one")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the base model's."""
        if not args:
            out = self.step(len(self.fused), **kwargs)
            if out is not None:
                return out
        return self.original(*args, **kwargs)

    def step(
        self,
        count: int,
        *,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The first `count` layers and the last norm; None where only the original will do."""
        placing = self._placing(past_key_values, count)
        if placing is None or input_ids is None or inputs_embeds is not None or not self._usual(kwargs):
            return None
        batch, tokens = input_ids.shape
        if not placing[0].ragged and attention_mask is not None and not _sees_all(attention_mask):
            return None
        if position_ids is None:
            seen = past_key_values.get_seq_length()
            position_ids = torch.arange(seen, seen + tokens)[None]
        parts = _parts(placing, batch, tokens)
        if parts is None:
            return None
        x = self.base.embed_tokens(input_ids)
        if x.dtype != torch.float32 or (torch.is_grad_enabled() and x.requires_grad):
            return None
        if self.multiplier != 1.0:
            x = x * self.multiplier
        x = x.contiguous()
        self._run(x, parts, position_ids)
        for layer in placing:
            layer.stored(tokens)
        assert self.output is not None
        return self.output(last_hidden_state=self.norm.normed(x), past_key_values=past_key_values)

    def _placing(self, cache: Any, count: int) -> list[Any] | None:
        """The cache's layers, if all of them let a compiled step write to them and nobody watches the model's layers."""
        layers = getattr(cache, "layers", None)
        if layers is None or len(layers) < count:
            return None
        for one, layer in zip(self.fused[:count], layers, strict=False):
            if not isinstance(layer, PlacingLayer) or "update" in vars(layer):
                return None
            if one.layer.__dict__.get("forward") != one.forward or _watched(one.layer):
                return None
        return list(layers[:count])

    def _usual(self, kwargs: dict[str, Any]) -> bool:
        config = self.base.config
        asked = (
            config.output_attentions or config.output_hidden_states or getattr(config, "output_router_logits", False)
        )
        return not asked and all(name in _HARMLESS or not value for name, value in kwargs.items())

    def _run(self, x: torch.Tensor, parts: _Parts, position_ids: torch.Tensor) -> None:
        """The layers in place on x, up to one whose states can't be stored: its status says so."""
        placed, table = parts.placed, parts.table
        layouts = [compiled(place.pool) for place in placed]
        sealed = [layouts[0] if place.sealed is None else compiled(place.sealed.pool) for place in placed]
        for each in (layouts, sealed):
            each += layouts[:1] * (len(self.fused) - len(placed))
        angles = {kind: self._angles(x, position_ids, kind) for kind in dict.fromkeys(self.types[: len(placed)])}
        starts = {kind: (cos.data_ptr(), sin.data_ptr()) for kind, (cos, sin) in angles.items()}
        table[:, :2] = (
            starts[self.types[0]] if len(starts) == 1 else [starts[kind] for kind in self.types[: len(placed)]]
        )
        kernel = placed[0].kernel
        assert isinstance(kernel, CpuKernel)
        cos = angles[self.types[0]][0]
        rows = x.shape[0] * x.shape[1]
        begin = 0
        for end in [*(stop for stop in self.stops if stop < len(placed)), len(placed)]:
            layer, sealing, side, code, _ = self.layers.run(
                begin,
                end,
                table.ctypes.data,
                layouts,
                sealed,
                kernel.name,
                kernel.precise,
                x.data_ptr(),
                rows,
                cos.shape[0] * cos.shape[1],
                cos.shape[-1],
                1,
                torch.get_num_threads(),
            )
            if layer >= 0:
                _status(placed[layer], sealing)[side] = code
                return
            if (mlp := self.fused[end - 1].parts.mlp) is not None:
                x.copy_(mlp(x))
            begin = end


def _watched(layer: Any) -> bool:
    """Whether a hook of the layer wants its calls. What transformers leaves on all layers after a call that asked for hidden
    states or attentions sleeps until the next such call."""
    if not (layer._forward_hooks or layer._forward_pre_hooks):
        return False
    asleep = output_capturing._active_collector.get() is None
    hooks = (*layer._forward_hooks.values(), *layer._forward_pre_hooks.values())
    return not (asleep and all(getattr(hook, "__module__", None) == output_capturing.__name__ for hook in hooks))


def _status(placed: Placed, sealing: bool) -> torch.Tensor:
    """Where a layer says what it couldn't store, or couldn't seal."""
    if not sealing:
        return placed.status
    assert placed.sealed is not None
    return placed.sealed.status


class _Parts(NamedTuple):
    """The layers' parts of a step. table: uint64 [layers, _COLUMNS], all but the angles. filled: int64 [pages, 2], what layers
    seal; the table has their addresses."""

    placed: list[Placed]
    table: NDArray[np.uint64]
    filled: list[NDArray[np.int64]]


def _parts(placing: list[Any], batch: int, tokens: int) -> _Parts | None:
    """Every layer's part of the step; None where a layer has none, or one that the compiled call doesn't take."""
    placed: list[Placed] = []
    own: list[tuple[int, ...]] = []
    filled: list[NDArray[np.int64]] = []
    alike: dict[int, tuple[list[int], tuple[int, ...]]] = {}  # of each step: its layers, and what they have in common
    for number, layer in enumerate(placing):
        place: Placed | None = layer.place(batch, tokens)
        if place is None:
            return None
        pool, step, kernel, _, sealed, _ = place
        if not isinstance(kernel, CpuKernel) or not kernel.encodes(pool):
            return None
        if id(step) in alike:
            alike[id(step)][0].append(number)
        else:
            split = Split.of(step) if sealed is None else Split.of(step, sealed.step)
            if split.decoding is None:
                return None
            alike[id(step)] = [number], _common(split.numbers)
        placed.append(place)
        if sealed is None:
            own.append((pool.base, pool.stride, 0, 0, 0, 0))
            continue
        if sealed.kernel is not kernel and sealed.kernel != kernel:
            return None
        at, count = 0, len(sealed.filled)
        if count:
            if not kernel.encodes(sealed.pool):
                return None
            filled.append(np.array(sealed.filled, dtype=np.int64))
            at = address(filled[-1])
        own.append((pool.base, pool.stride, sealed.pool.base, sealed.pool.stride, at, count))
    table = np.empty((len(placed), _COLUMNS), dtype=np.uint64)
    for numbers, common in alike.values():
        table[slice(None) if len(alike) == 1 else numbers, 2:] = common
    table[:, _OWN] = own
    return _Parts(placed, table, filled)


def _common(numbers: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """`Split.numbers` as a row of the table behind the angles, a layer's own columns left out."""
    step, written, *others = numbers
    return *step, 0, 0, *written, 0, 0, *(others[0] if others else (0,) * 4), 0, 0


def _sees_all(mask: Any) -> bool:
    """Whether a mask [batch, tokens] hides nothing; False for any other."""
    return isinstance(mask, torch.Tensor) and mask.dim() == 2 and bool(mask.all())
