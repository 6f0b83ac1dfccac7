"""Packed matrices multiply in float32 for a while: for checks whose answer rounded activations would blur."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from stratakv.weights.fused_layer import FusedLayer
from stratakv.weights.modules import PackedExperts, PackedLinear
from stratakv.weights.stack import Stack


@contextmanager
def exact_products(model: Any, *, head: bool = False) -> Iterator[None]:
    """Within, a model's packed matrices multiply as `Product(exact=True)` and no layer runs fused; afterwards all is as before.

    head: the output head too. Else it stays as it is: nothing comes after it that could magnify its rounding, and it is the
    largest matrix. But rounding makes a smaller difference of its inputs look larger than it is.
    """
    left = None if head else model.get_output_embeddings()
    with ExitStack() as undo:
        for module in model.modules():
            if isinstance(getattr(module.__dict__.get("forward"), "__self__", None), FusedLayer | Stack):
                _set(undo, module, forward=module.forward.__self__.original)
            if isinstance(module, PackedExperts):
                _set(undo, module, exact=True, _products={})
            if isinstance(module, PackedLinear) and module is not left:
                _set(undo, module.product, exact=True)
        yield


def _set(undo: ExitStack, owner: Any, **values: Any) -> None:
    for name, value in values.items():
        undo.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)
