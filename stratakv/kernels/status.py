"""What a step couldn't store: kernels write it down as they go, the step's owner reads it once, at the end."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from stratakv.errors import UserError
from stratakv.kvtypes import KVType

Part = Literal["new", "sealed", "fine again"]
"""What couldn't be stored: new tokens, pages that became sealed ones, or those that became fine ones again."""

_CAUSES: dict[Part, str] = {  # those before others are their cause
    "new": "the model's own states: broken weights, an overflow in half precision, or a type with too small a range: "
    "try f32 or bf16",
    "sealed": "pages that leave the spans are stored so: give the layer a type with a larger range",
    "fine again": "pages that come back into the spans are stored so: give the spans a type with a larger range",
}
Pair = tuple[KVType, KVType]


class Status:
    """Of all layers of a step. Nothing but `check` waits for a device."""

    def __init__(self) -> None:
        self._layers: list[tuple[str, dict[Part, Pair]]] = []
        self._codes: dict[torch.device, torch.Tensor] = {}

    def add(self, name: str, written: Pair, sealed: Pair | None = None) -> int:
        """One layer more, and its number. name: how errors call it. written, sealed: the types of K and V in pages that new
        tokens are written to, and in sealed ones."""
        self._layers.append((name, {"new": written, "sealed": sealed or written, "fine again": written}))
        return self.last

    @property
    def last(self) -> int:
        """The last layer's number."""
        return len(self._layers) - 1

    def of(self, layer: int, device: torch.device, part: Part = "new") -> torch.Tensor:
        """Of a layer, int32 [2], as `Kernel.append` takes it; ask when all layers have been added."""
        if device not in self._codes:
            self._codes[device] = new_codes(len(_CAUSES), len(self._layers), device=device)
        return self._codes[device][list(_CAUSES).index(part), layer]

    def check(self) -> None:
        """Read what has been written since the last time, and forget it. UserError that names the first layer, and K
        before V, that couldn't be stored: new tokens before what pages became."""
        found = []
        for codes in self._codes.values():
            read = codes.cpu().numpy()
            if read.any():
                at, layer, side = (int(index) for index in np.argwhere(read)[0])
                found.append((at, layer, side, int(read[at, layer, side])))
        if not found:
            return
        self.clear()
        at, layer, side, code = min(found)
        part, (name, types) = list(_CAUSES)[at], self._layers[layer]
        raise UserError(f"{name}, {'KV'[side]}: {types[part][side].refusal(code)} ({_CAUSES[part]})")

    def clear(self) -> None:
        """Forget what has been written."""
        for codes in self._codes.values():
            codes.zero_()


def new_codes(*layers: int, device: torch.device | None = None) -> torch.Tensor:
    """int32 [*layers, 2], all good: 0. Otherwise `kvtypes.NON_FINITE` or `kvtypes.TOO_LARGE`."""
    with torch.inference_mode(False):  # an inference tensor couldn't be written outside of inference mode
        return torch.zeros(*layers, 2, dtype=torch.int32, device=device)
