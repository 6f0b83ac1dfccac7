"""What a step couldn't store: kernels write it down as they go, the step's owner reads it once, at the end."""

from __future__ import annotations

import torch

from stratakv.errors import UserError
from stratakv.kvtypes import KVType


class Status:
    """Of all layers of a step. Nothing but `check` waits for a device."""

    def __init__(self) -> None:
        self._layers: list[tuple[str, KVType, KVType]] = []
        self._codes: dict[torch.device, torch.Tensor] = {}

    def add(self, name: str, k: KVType, v: KVType) -> int:
        """One layer more, and its number. name: how errors call it. k, v: the types of its K and V."""
        self._layers.append((name, k, v))
        return self.last

    @property
    def last(self) -> int:
        """The last layer's number."""
        return len(self._layers) - 1

    def of(self, layer: int, device: torch.device) -> torch.Tensor:
        """The layer's part, int32 [2], as `Kernel.append` takes it; ask when all layers have been added."""
        if device not in self._codes:
            self._codes[device] = new_codes(len(self._layers), device=device)
        return self._codes[device][layer]

    def check(self) -> None:
        """Read what has been written since the last time, and forget it. UserError that names the first layer, and K
        before V, whose states couldn't be stored."""
        found = []
        for codes in self._codes.values():
            read = codes.cpu().numpy()
            if read.any():
                layer, side = (int(index) for index in divmod(read.astype(bool).argmax(), 2))
                found.append((layer, side, int(read[layer, side])))
        if not found:
            return
        self.clear()
        layer, side, code = min(found)
        name, *types = self._layers[layer]
        raise UserError(
            f"{name}, {'KV'[side]}: {types[side].refusal(code)} (the model's own states: broken weights, an overflow in half "
            "precision, or a type with too small a range: try f32 or bf16)"
        )

    def clear(self) -> None:
        """Forget what has been written."""
        for codes in self._codes.values():
            codes.zero_()


def new_codes(*layers: int, device: torch.device | None = None) -> torch.Tensor:
    """int32 [*layers, 2], all good: 0. Otherwise `kvtypes.NON_FINITE` or `kvtypes.TOO_LARGE`."""
    with torch.inference_mode(False):  # an inference tensor couldn't be written outside of inference mode
        return torch.zeros(*layers, 2, dtype=torch.int32, device=device)
