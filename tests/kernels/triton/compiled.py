"""Compiles the Triton kernels for a compute capability and prints what their machine code is, a JSON line each.

A process of its own: where Triton interprets, nothing can be compiled. Arguments: capability, K/V:dim:groups:queries ...
K's encoder is compiled once for each K and dim.
"""

from __future__ import annotations

import json
import sys

from row_pages import row_layout

from stratakv.kernels.triton.machine_code import Code, append_codes, attention_code, merge_code


def report(what: str, code: Code) -> None:
    narrow = [name for name in code.loops if name.startswith("LDG") and (".U8" in name or ".S8" in name)]
    print(
        json.dumps(
            {"what": what, "registers": code.registers, "stack": code.stack, "shared": code.shared, "narrow": narrow}
        )
    )


def main() -> None:
    capability, encoders = int(sys.argv[1]), set()
    for text in sys.argv[2:]:
        pair, dim, groups, queries = text.split(":")
        k, v = pair.split("/")
        layout = row_layout(k, v, (int(dim), int(dim)), 8)
        report(f"attend {text}", attention_code(capability, layout, int(groups), int(queries)))
        if (k, dim) not in encoders:
            encoders.add((k, dim))
            for name, code in append_codes(capability, layout, "k").items():
                report(f"{name} {k}:{dim}", code)
    report("merge", merge_code(capability, 128))


if __name__ == "__main__":
    main()
