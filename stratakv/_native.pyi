"""stratakv's compiled part."""

from collections.abc import Sequence
from typing import Annotated

import numpy
from numpy.typing import NDArray

def cpu_features() -> list[str]:
    """
    Instruction sets that this CPU has and the system allows, found at run time.
    """

def compiler() -> str:
    """Name and version of the compiler that built this module."""

def borrow_openmp() -> bool:
    """
    Have the kernels run on OpenMP's threads, which torch's loops have; False where there are none.
    """

class Side:
    """How one side's vectors lie in a head's tile."""

    def __init__(
        self,
        codes: int,
        dim: int,
        nbytes: int,
        blocks: int,
        group: int,
        base_bytes: int,
        base_word: int,
        base: int,
        high_bytes: int,
        high_word: int,
        high: int,
        scale: int,
        minimum: int,
        signed_scale: bool,
        unit: float,
        table: Sequence[int],
    ) -> None: ...

class Rotation:
    """y = second * (H (first * x)) * norm on runs of `block` values."""

    def __init__(
        self,
        block: int,
        order: int,
        first: Sequence[float],
        second: Sequence[float],
        paley: Sequence[float],
        norm: float,
    ) -> None: ...

class Encoder:
    """How one side's vectors become bytes in a head's tile."""

    def __init__(
        self,
        form: int,
        dim: int,
        nbytes: int,
        blocks: int,
        bits: int,
        rotation: Rotation,
        thresholds: Sequence[float],
        integers: Sequence[int],
        unit: float,
        bins: float,
        numbers: Sequence[int],
        costs: Sequence[int],
        positions: Sequence[int],
    ) -> None: ...

class Layout:
    """A layer's page layout: both sides, and a head's tile."""

    def __init__(
        self, k: Side, v: Side, k_encoder: Encoder, v_encoder: Encoder, kv_heads: int, tile_bytes: int
    ) -> None: ...
    @property
    def vectors(self) -> tuple[bool, bool]:
        """
        Whether integer vector code reads K, V; otherwise rows are decoded one by one.
        """

def decode(
    kernel: str,
    layout: Layout,
    of_k: bool,
    base: int,
    stride: int,
    pages: Annotated[NDArray[numpy.int64], dict(shape=(None, None), order="C", device="cpu", writable=False)],
    start: int,
    floats: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None, None), order="C", device="cpu")] | None,
    bfloats: Annotated[NDArray[numpy.int16], dict(shape=(None, None, None, None), order="C", device="cpu")] | None,
    threads: int,
) -> None:
    """
    Decode tokens of pages to rows in the stored basis, float32 or bfloat16 (as int16), [sequences, kv_heads, tokens, dim].
    """

def append(
    kernel: str,
    layout: Layout,
    base: int,
    stride: int,
    k: Annotated[NDArray, dict(shape=(None, None, None), device="cpu", writable=False)],
    v: Annotated[NDArray, dict(shape=(None, None, None), device="cpu", writable=False)],
    slots: Annotated[NDArray[numpy.int64], dict(shape=(None,), order="C", device="cpu", writable=False)],
    threads: int,
) -> tuple[int, int]:
    """
    Encode states [tokens, kv_heads, dim] into pages. Returns (side, what): side -1 good, 0 K, 1 V; what 1 inf or nan, 2 too large.
    """

def page_tokens() -> int:
    """Tokens of the pages that the kernels read and write."""

def packings() -> list[str]:
    """
    Ways to pack codes that the kernels read, in the order of Side's `codes`.
    """

def encodings() -> list[str]:
    """
    Ways to encode that the kernels know, in the order of Encoder's `form`; one more: none.
    """

def kernels() -> list[str]:
    """Names of the attention kernels that run on this machine, best first."""

def convert(
    kernel: str,
    layout: Layout,
    base: int,
    stride: int,
    target: Layout,
    target_base: int,
    target_stride: int,
    numbers: Annotated[NDArray[numpy.int64], dict(shape=(None, None), order="C", device="cpu", writable=False)],
    threads: int,
) -> tuple[int, int]:
    """
    Whole pages become pages of another layout, from what they hold. numbers [pages, 2]: of a page here and there. Returns (side, what) as `append`.
    """

def attend(
    kernel: str,
    kinds: Sequence[
        tuple[
            Layout,
            int,
            int,
            Annotated[NDArray[numpy.int64], dict(shape=(None,), order="C", device="cpu", writable=False)],
            Annotated[NDArray[numpy.int64], dict(shape=(None,), order="C", device="cpu", writable=False)],
            Annotated[NDArray[numpy.int32], dict(shape=(None,), order="C", device="cpu", writable=False)],
            Annotated[NDArray[numpy.int32], dict(shape=(None,), order="C", device="cpu", writable=False)],
        ]
    ],
    query: Annotated[NDArray, dict(shape=(None, None, None), device="cpu", writable=False)],
    out: Annotated[NDArray, dict(shape=(None, None, None), device="cpu")],
    lse: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu")] | None,
    query_start: Annotated[NDArray[numpy.int32], dict(shape=(None,), order="C", device="cpu", writable=False)],
    sinks: Annotated[NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)] | None,
    scale: float,
    softcap: float,
    precise: bool,
    threads: int,
) -> str:
    """
    Decode attention of sequences with some query tokens each over packed pages, into out, both in the model's basis. kinds: of pages, one or two, of which none holds what the other one does, each as (layout, base, stride, pages, page_start, first, last). Returns the name of the kernel that ran, empty when there was nothing to do.
    """

def open_ggml(base: str, cpu: str) -> str:
    """
    Use ggml's kernels from these two libraries; what is wrong with them, or nothing.
    """

def tile_kernels() -> list[str]:
    """
    Instruction sets that multiply packed rows on this machine, best first.
    """

def tiled(type: int) -> bool:
    """Whether rows of this ggml type are multiplied in tiles of ours."""

def tiles_in_use() -> str:
    """The instruction set that multiplies packed rows."""

def use_tiles(name: str) -> bool:
    """Multiply with this one from now on; False where it doesn't run here."""

def check_ggml_type(type: int) -> None:
    """ValueError for a type that ggml can't multiply here."""

def guard_mapping(address: int, size: int) -> None:
    """
    Let reads of this mapping give zeros, instead of a crash, where its file has become shorter.
    """

def forget_mapping(address: int) -> None:
    """Before it is unmapped."""

def mapping_failed(address: int) -> bool:
    """Whether a read of a guarded mapping found no file behind it."""

class Matrix:
    """A matrix in a file's blocks, rows x columns."""

    def __init__(
        self, type: int, rows: int, columns: int, data: int, place: Sequence[int], bias: Sequence[float]
    ) -> None: ...
    def unpack(self, index: int, first: int, count: int, out: int, threads: int) -> None:
        """Rows by place to float32; index: int64, or 0 for first, first + 1, ..."""

    def multiply_chosen(
        self, experts: int, index: int, slots: int, share: int, x: int, out: int, out_stride: int, threads: int
    ) -> None:
        """
        out[slot] = (the index[slot]-th of equal matrices from this one on) x[slot / share].
        """

class MatrixGroup:
    """Matrices of one input; their results stand side by side."""

    def __init__(self, matrices: Sequence[Matrix]) -> None: ...
    def multiply(self, x: int, tokens: int, out: int, threads: int) -> None:
        """out[token] = all matrices x[token], float32."""

class Norm:
    """x / rms(x) * weight; no weight: no norm."""

    def __init__(self, weight: Sequence[float], epsilon: float) -> None: ...
    @property
    def weight(self) -> list[float]: ...
    @property
    def epsilon(self) -> float: ...

class AttentionPart:
    """
    Of a decoder layer: norm, q, k, v, RoPE; and after attention the output and its norm.
    """

    def __init__(
        self,
        before: Norm,
        qkv: MatrixGroup,
        q_heads: int,
        kv_heads: int,
        dim: int,
        q_norm: Norm,
        k_norm: Norm,
        v_norm: Norm,
        rotated: int,
        interleaved: bool,
        scale: float,
        softcap: float,
        sinks: Sequence[float],
        output: MatrixGroup,
        after: Norm,
        residual: float,
    ) -> None: ...

class MlpPart:
    """Of a decoder layer: norm, gate and up, activation, down, norm."""

    def __init__(
        self, before: Norm, gate_up: MatrixGroup, activation: int, down: MatrixGroup, after: Norm, residual: float
    ) -> None: ...

class PackedLayer:
    """
    A decoder layer made of parts; without an MLP part the caller has one of its own.
    """

    def __init__(self, attention: AttentionPart, mlp: MlpPart | None) -> None: ...
    def enter(
        self,
        x: int,
        batch: int,
        tokens: int,
        cos: int,
        sin: int,
        angle_rows: int,
        angle_stride: int,
        angle_step: int,
        q: int,
        k: int,
        v: int,
        threads: int,
    ) -> None:
        """
        x [batch * tokens][width] to q, k, v [batch][heads][tokens][dim], normed and turned.
        """

    def leave(self, attended: int, rows: int, x: int, threads: int) -> None:
        """
        x [rows][width] becomes the layer's result; attended [rows][q_heads * dim].
        """

class PackedLayers:
    """Layers in order, for whole steps."""

    def __init__(self, layers: Sequence[PackedLayer]) -> None: ...
    def run(
        self,
        begin: int,
        end: int,
        table: int,
        layouts: Sequence[Layout],
        sealed: Sequence[Layout],
        kernel: str,
        precise: bool,
        x: int,
        rows: int,
        angle_rows: int,
        angle_stride: int,
        angle_step: int,
        threads: int,
    ) -> tuple[int, bool, int, int, str]:
        """
        Layers [begin, end) of a step over packed pages, in place on x [rows][width]. table: uint64 [layers][20], addresses of cos and sin, of slots and query_start, numbers of sequences and of those that decode; then base, stride, pages, page_start, first and last of pages that are written; then the same of sealed ones, base 0 without; then where numbers of written pages and of the sealed ones that they become in this step lie, in pairs, and how many pairs. layouts: of the pages that are written; sealed: of the others, any where there are none. Returns (layer, whether a page couldn't be sealed, side, what, kernel), side and what as `append`'s, layer -1: good.
        """

def rms_norm(x: int, weight: int, epsilon: float, rows: int, dim: int, out: int, threads: int) -> None:
    """out = x / rms(x) * weight, by rows."""

def gate(activation: int, x: int, rows: int, width: int, out: int, threads: int) -> None:
    """out = activation(left half of x) * right half, by rows."""

def score(
    logits: int,
    rows: int,
    columns: int,
    logsumexp: int,
    top: int,
    reference: int,
    reference_logsumexp: int,
    kld: int,
    scorer: str,
    threads: int,
) -> None:
    """
    Of float32 rows one behind the other: ln(sum(e^x)) as float64, where the largest stands as int64, and where reference isn't 0 the divergence from it in nats, float64. scorer: one of scorers(), '' for the first.
    """

def scorers() -> list[str]:
    """Instruction sets that `score` runs by on this CPU, the fastest first."""
