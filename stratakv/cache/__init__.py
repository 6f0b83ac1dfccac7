"""Where packed vectors live: pages, and a transformers cache over them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stratakv.cache.kv_cache import KVCache

__all__ = ["KVCache"]


def __getattr__(name: str) -> Any:
    """KVCache is loaded when it is asked for: it needs the kernels, and these need the page layout of this package."""
    if name not in __all__:
        raise AttributeError(f"module 'stratakv.cache' has no attribute {name!r}")
    from stratakv.cache.kv_cache import KVCache

    return KVCache
