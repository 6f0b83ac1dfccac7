"""Compiles the Triton kernels for a compute capability and prints what their machine code is, a JSON line each.

A process of its own: where Triton interprets, nothing can be compiled. Arguments: capability, K/V:dim:groups:queries ...
K's encoder is compiled once for each K and dim.
"""

from __future__ import annotations

import json
import sys

from row_pages import row_layout

from stratakv.kernels.triton.machine_code import Code, append_codes, attention_code, merge_code
from stratakv.kernels.triton.shape import shape_of
from stratakv.kernels.triton.side import side_of
from stratakv.pages.layout import PageLayout


def report(what: str, code: Code, **more: float) -> None:
    narrow = [name for name in code.loops if name.startswith("LDG") and (".U8" in name or ".S8" in name)]
    found = {"what": what, "registers": code.registers, "stack": code.stack, "shared": code.shared, "narrow": narrow}
    print(json.dumps(found | more))


def wide(code: Code, layout: PageLayout, groups: int, queries: int) -> float:
    """Bytes of a tile that are loaded 16 at a time, as a share of those of its codes (floats, wide planes)."""
    shape, sides = shape_of(layout, groups, queries), (side_of(layout, "k"), side_of(layout, "v"))
    loads = sum(n for name, n in code.loop.items() if name.startswith("LDG") and ".128" in name)
    return loads * 16 * 32 * shape.warps / (shape.tile * sum(side.wide_bytes for side in sides))


def main() -> None:
    capability, encoders = int(sys.argv[1]), set()
    for text in sys.argv[2:]:
        pair, dim, groups, queries = text.split(":")
        k, v = pair.split("/")
        layout = row_layout(k, v, (int(dim), int(dim)), 8)
        code = attention_code(capability, layout, int(groups), int(queries))
        shape = shape_of(layout, int(groups), int(queries))
        cycles = code.shared_cycles * shape.warps / shape.tile
        report(f"attend {text}", code, wide=wide(code, layout, int(groups), int(queries)), cycles=cycles)
        if (k, dim) not in encoders:
            encoders.add((k, dim))
            for name, code in append_codes(capability, layout, "k").items():
                report(f"{name} {k}:{dim}", code)
    report("merge", merge_code(capability, 128))


if __name__ == "__main__":
    main()
