"""How one layer stores its K and V, and the one place that computes its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stratakv.kvtypes import KVType, kv_type
from stratakv.profile.geometry import LayerGeometry


@dataclass(frozen=True)
class LayerStorage:
    """The types of a KV layer. UserError from all that counts bytes where a type can't store the layer's head_dim."""

    k: KVType
    v: KVType

    @staticmethod
    def of(pair: tuple[str, str]) -> LayerStorage:
        """From the names of the types. UserError for an unknown one."""
        return LayerStorage(kv_type(pair[0]), kv_type(pair[1]))

    def token_bytes(self, layer: LayerGeometry) -> tuple[int, int]:
        """Bytes of one token's K and of its V, all kv heads together."""
        return side_bytes(self.k, layer, 0), side_bytes(self.v, layer, 1)

    def nbytes(self, layer: LayerGeometry, tokens: int, *, windowed: bool = True) -> int:
        """Bytes of one sequence of so many tokens; sliding and chunked layers keep at most their window.

        windowed: False where all of the tokens are there whatever the window: in whole pages, for example.
        """
        kept = tokens if layer.window is None or not windowed else min(tokens, layer.window)
        return kept * sum(self.token_bytes(layer))


def side_bytes(type_: KVType, layer: LayerGeometry, side: Literal[0, 1]) -> int:
    """Bytes of one token's K (side 0) or V (1) as a type, all kv heads together."""
    return layer.kv_heads * type_.nbytes(layer.head_dim[side])
