"""Numbers of the host's on their way to a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def sent(numbers: NDArray[Any], device: torch.device) -> torch.Tensor:
    """The numbers on a device, without waiting for what that is busy with: a GPU reads them from pinned memory by itself, while
    CUDA may wait for its stream before it copies from any other."""
    here = torch.from_numpy(np.ascontiguousarray(numbers))
    if device.type == "cuda":
        here = here.pin_memory()
    return here.to(device, non_blocking=True)
