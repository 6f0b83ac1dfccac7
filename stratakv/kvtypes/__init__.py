"""How one vector is stored: a frozen value per type, plain torch, the specification and oracle of every kernel."""

from __future__ import annotations

from stratakv.kvtypes.registry import kv_type, type_names
from stratakv.kvtypes.types import NON_FINITE, TOO_LARGE, Field, KVType

__all__ = ["NON_FINITE", "TOO_LARGE", "Field", "KVType", "kv_type", "type_names"]
