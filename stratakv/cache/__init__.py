"""Where packed vectors live: pages, and a transformers cache over them."""

from stratakv.cache.kv_cache import KVCache

__all__ = ["KVCache"]
