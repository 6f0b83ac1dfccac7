"""Machine code of the Triton kernels without a GPU: compiled for a compute capability, and read again."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stratakv.kernels.triton.appending import BLOCKS, REGISTERS, SEAM
from stratakv.kernels.triton.encoder import encoder_of
from stratakv.kernels.triton.shape import Shape, shape_of
from stratakv.kernels.triton.side import Name, side_of
from stratakv.pages.layout import PageLayout

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")
_LABEL = re.compile(r"^(\.L_x_\d+):")


@dataclass(frozen=True)
class Code:
    """registers: of a thread. stack: bytes of a thread, 0 where nothing is spilled. shared: bytes of a program. whole, loops,
    loop: instructions of all the code, of what lies in any loop, and of the largest loop once around, by their whole names."""

    registers: int
    stack: int
    shared: int
    whole: Counter[str]
    loops: Counter[str]
    loop: Counter[str]

    @property
    def instructions(self) -> int:
        """Of the loop."""
        return sum(self.loop.values())

    @property
    def shared_cycles(self) -> int:
        """Cycles of the loop's accesses to shared memory and the first cache, which move 128 bytes each: 4 bytes of 32 threads.
        Without conflicts between banks."""
        return sum(n * _cycles(name.split(".")) for name, n in self.loop.items())

    def count(self, *names: str) -> int:
        """Of the loop, those whose name before the first point is one of these."""
        return sum(n for name, n in self.loop.items() if name.split(".")[0] in names)


def _cycles(parts: list[str]) -> int:
    if parts[0] in ("LDSM", "STSM"):  # matrices of 8 by 8 halves, 128 bytes each
        return int(parts[-1]) if parts[-1].isdigit() else 1
    if parts[0] not in ("LDS", "STS", "LDG", "STG", "LDGSTS"):
        return 0
    return 4 if "128" in parts else 2 if "64" in parts else 1


def attention_code(
    capability: int,
    layout: PageLayout,
    groups: int,
    queries: int = 1,
    softcap: bool = False,
    shape: Shape | None = None,
) -> Code:
    """The attention kernel's for sequences of that many query tokens. capability: 90 for 9.0."""
    from stratakv.kernels.triton import attention

    shape = shape or shape_of(layout, groups, queries)
    k, v = side_of(layout, "k"), side_of(layout, "v")
    signature = dict.fromkeys(("q", "out", "sums"), "*fp32") | {"memory": "*u8", "k_table": "*i32", "v_table": "*i32"}
    signature |= dict.fromkeys(("pages", "blocks", "first", "last"), "*i32")
    signature |= {"q_token": "i32", "q_head": "i32", "page_stride": "i64", "tokens": "i32", "splits": "i32"}
    signature |= {"scale": "fp32", "softcap": "fp32"}
    constants = shape.constants(k, v, layout, softcap)
    return _compiled(
        capability, attention.attend, signature, constants, shape.warps, shape.stages, registers=shape.registers
    )


def merge_code(capability: int, dim: int) -> Code:
    """Of the kernel that adds splits up."""
    from stratakv.kernels.triton import attention

    signature = dict.fromkeys(("parts", "sums", "sinks", "out", "lse"), "*fp32")
    signature |= dict.fromkeys(("rows", "q_heads", "splits"), "i32")
    constants = {"DIM": dim, "PADDED": max(16, 1 << (dim - 1).bit_length()), "SINKS": True, "LSE": True}
    return _compiled(capability, attention.merge, signature, constants, 1)


def append_codes(capability: int, layout: PageLayout, name: Name) -> dict[str, Code]:
    """Of the kernels that encode one side, by their names; none where the type encodes itself."""
    from stratakv.kernels.triton import encoding, trellis_encoding

    encoder = encoder_of(layout, name)
    if encoder is None:
        return {}
    side = side_of(layout, name)
    rows = {"x_token": "i32", "x_head": "i32"}
    into = {"slots": "*i64", "memory": "*u8", "status": "*i32"}
    page, tokens = {"page_stride": "i64"}, {"tokens": "i32"}
    constants = {"S": side, "E": encoder, "TILE_BYTES": layout.tile_bytes}

    def compiled(function: Any, signature: dict[str, str], constants: dict[str, Any], warps: int = 4) -> Code:
        registers = REGISTERS if warps > 1 else None
        return _compiled(capability, function, signature, constants, warps, fused=False, registers=registers)

    signs = {"signs": "*fp32", "paley": "*fp32"}
    if encoder.form != "trellis":
        numbers = signs | {"thresholds": "*fp32", "integers": "*i32"}
        signature = {"x": "*bf16"} | into | numbers | rows | page | tokens
        return {"append": compiled(encoding.append, signature, constants)}
    bins, norms = {"bins": "*i16"}, {"norms": "*fp32"}
    heads = {"S": side, "E": encoder, "HEADS": layout.kv_heads}
    first = {"x": "*bf16", "status": "*i32"} | bins | norms | signs | rows | tokens
    second = bins | {"costs": "*i64", "ways": "*i32"} | {"count": "i32"}
    third = into | bins | {"ways": "*u8"} | norms | {"numbers": "*u8", "integers": "*i32"} | page | tokens
    path = {"SIZE": side.size, "SEAM": SEAM, "R": BLOCKS}
    return {
        "prepare": compiled(trellis_encoding.prepare, first, heads),
        "paths": compiled(trellis_encoding.paths, second, path, 1),
        "finish": compiled(trellis_encoding.finish, third, heads | {"TILE_BYTES": layout.tile_bytes}),
    }


def _compiled(
    capability: int,
    function: Any,
    signature: dict[str, str],
    constants: dict[str, Any],
    warps: int,
    stages: int = 1,
    fused: bool = True,
    registers: int | None = None,
) -> Code:
    """Compiled as a launch would: pointers and strides are multiples of 16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compiled

    aligned = ("*", "i64")
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, type_) in enumerate(signature.items())
        if (type_.startswith(aligned) and name != "status") or name in ("q_token", "q_head", "x_token", "x_head")
    }
    source = ASTSource(function, signature | dict.fromkeys(constants, "constexpr"), constants, attributes)
    found = compiled(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": stages, "enable_fp_fusion": fused, "maxnreg": registers},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(found.asm["cubin"])
        usage, listing = _tool("cuobjdump", "-res-usage", file.name), _tool("nvdisasm", "-c", file.name)
    registers, stack = (int(n) for n in re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())  # type: ignore[union-attr]
    return Code(registers, stack, found.metadata.shared, *read_code(listing))


def read_code(listing: str) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Instructions of a disassembly, of its loops, and of the largest one: from a label to the last branch back to it."""
    labels: dict[str, int] = {}
    code: list[str] = []
    loops = [(0, 0)]
    for line in listing.splitlines():
        if (label := _LABEL.match(line.strip())) is not None:
            labels[label[1]] = len(code)
        elif (found := _INSTRUCTION.search(line)) is not None:
            code.append(found[2])
            target = re.search(r"\((\.L_x_\d+)\)", found[3])
            if found[2].startswith("BRA") and target is not None and target[1] in labels:
                begin = labels[target[1]]
                if begin < len(code) - 1:
                    loops.append((begin, len(code)))
    inside = {at for loop in loops for at in range(*loop)}
    largest = max(loops, key=lambda loop: loop[1] - loop[0])
    return Counter(code), Counter(code[at] for at in inside), Counter(code[slice(*largest)])


def _tool(name: str, *arguments: str) -> str:
    """What a program of Triton's wheel says."""
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, check=True).stdout
