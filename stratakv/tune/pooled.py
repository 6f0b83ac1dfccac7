"""Types tell about each other: a layer's damage by type is nearly its sensitivity times each type's squared error.

One draw of gradients says little about one type, and much about all of them together. Errors of types that rotate vectors have
no direction that they prefer, so damage[layer, type] / error[layer, type] is a layer's factor times a type's, up to noise. The
factors are found from all types and all layers at once, K and V apart. Types that don't rotate are pooled apart too: their
errors lie where outliers are, and these lie elsewhere in each layer.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from stratakv.measure.divergence import Floats


def pooled(damage: Floats, errors: Floats, kinds: Sequence[Hashable]) -> Floats:
    """damage and errors, squared and summed, [kv_layers, 2, types]: the damage with most of its noise gone.

    kinds: of the types; those of one kind are pooled. Where a layer has no damage at all it stays so, and a type without error
    has none.
    """
    found = damage.copy()
    for kind in set(kinds):
        for side in (0, 1):
            columns = np.array([each == kind for each in kinds]) & (errors[:, side] > 0).all(0)
            layers = (damage[:, side][:, columns] > 0).all(1)
            if layers.any() and columns.any():
                at = np.ix_(np.flatnonzero(layers), np.array([side]), np.flatnonzero(columns))
                found[at] = _factored(damage[at][:, 0], errors[at][:, 0])[:, None]
    return found


def _factored(damage: Floats, errors: Floats) -> Floats:
    """Both [layers, types], positive."""
    ratio = damage / errors
    of_type = np.exp(np.log(ratio).mean(axis=0))
    of_layer = (ratio / of_type).mean(axis=1, keepdims=True)
    return np.asarray(of_layer * of_type * errors)
