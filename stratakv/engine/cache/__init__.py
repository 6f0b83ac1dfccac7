"""A transformers cache over packed pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stratakv.engine.cache.kv_cache import KVCache

__all__ = ["KVCache"]


def __getattr__(name: str) -> Any:
    """KVCache is loaded when it is asked for: describing a model needs no kernels."""
    if name not in __all__:
        raise AttributeError(f"module 'stratakv.engine.cache' has no attribute {name!r}")
    from stratakv.engine.cache.kv_cache import KVCache

    return KVCache
