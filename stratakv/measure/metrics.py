"""What a row says of all predictions of a profile, one description a number: rows, tables and tools read it.

Definitions: docs/measuring.md; a change of one raises METRICS_VERSION (rows.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # tables are also made where nothing is measured: numpy is loaded with the first numbers
    import numpy as np
    import numpy.typing as npt

SHARE_ABOVE = 1e-3


@dataclass(frozen=True)
class Metric:
    """A field of a row, worked out from each prediction's KLD in nats and whether its most likely token is the f16 cache's.

    heading: of its column, None for what only JSON has. published: a column in docs/results.md too.
    """

    field: str
    of: Callable[[npt.NDArray[np.float64], npt.NDArray[np.bool_]], float]
    unit: Literal["nats", "share"]
    heading: str | None = None
    published: bool = False


def _median(values: npt.NDArray[np.float64]) -> float:
    import numpy as np

    return float(np.median(values))


def _quantile(values: npt.NDArray[np.float64], share: float) -> float:
    import numpy as np

    return float(np.quantile(values, share))


METRICS = (
    Metric("kld_median", lambda kld, agree: _median(kld), "nats", "median", published=True),
    Metric("kld_p99", lambda kld, agree: _quantile(kld, 0.99), "nats", "p99", published=True),
    Metric("kld_max", lambda kld, agree: float(kld.max()), "nats"),
    Metric("kld_share_above_1e-3", lambda kld, agree: float((kld > SHARE_ABOVE).mean()), "share", ">1e-3"),
    Metric("top1", lambda kld, agree: float(agree.mean()), "share", "top-1", published=True),
)
