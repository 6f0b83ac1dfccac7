"""What a GGUF file's header says about the model in it: is it one, how large is it, which special tokens can't be."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from stratakv.errors import UserError
from stratakv.weights.gguf_header import GGUFHeader
from stratakv.weights.gguf_split import read_gguf_header

_SPECIAL_IDS = ("bos", "eos", "unknown", "padding")


@dataclass(frozen=True)
class GGUFModel:
    """architecture: llama.cpp's name. vocabulary: number of tokens. values: number of weights. tensors_digest: sha256 over
    the tensors' names, types and shapes. bad_special_ids: special tokens whose id lies outside of the vocabulary."""

    header: GGUFHeader
    architecture: str
    vocabulary: int
    values: int
    tensors_digest: str
    bad_special_ids: dict[str, int]
    add_bos: bool | None

    @property
    def hidden_fields(self) -> frozenset[str]:
        """Fields that transformers must not see: it would index the vocabulary with them."""
        return frozenset(f"tokenizer.ggml.{name}_token_id" for name in self.bad_special_ids)

    @property
    def nbytes(self) -> int:
        """Of all of its files."""
        return sum(path.stat().st_size for path in self.header.paths)


def read_gguf_model(path: Path) -> GGUFModel:
    """Read and check a GGUF header, of a split model all parts'; UserError when a file is truncated or something else."""
    header = read_gguf_header(path)
    architecture = header.get("general.architecture")
    if not isinstance(architecture, str) or not header.tensors:
        lacks = "no tensors" if isinstance(architecture, str) else "no general.architecture"
        raise UserError(f"{path} holds no language model: {lacks} in its header")
    layers = header.get(f"{architecture}.block_count", 0)
    if isinstance(layers, int) and layers > len(
        header.tensors
    ):  # each would be described before its weights are missed
        raise UserError(
            f"{path} is not whole: it says that it has {layers:,} layers, and has {len(header.tensors):,} tensors"
        )
    vocabulary = header.length("tokenizer.ggml.tokens")
    tensors = [(t.name, t.tensor_type.name, list(t.shape), t.n_bytes) for t in header.tensors]
    digest = hashlib.sha256(repr(sorted(tensors)).encode()).hexdigest()
    special = {name: header.get(f"tokenizer.ggml.{name}_token_id") for name in _SPECIAL_IDS}
    bad = {name: int(id_) for name, id_ in special.items() if id_ is not None and vocabulary and int(id_) >= vocabulary}
    values = sum(tensor.n_elements for tensor in header.tensors)
    add_bos = header.get("tokenizer.ggml.add_bos_token")
    return GGUFModel(header, architecture, vocabulary, values, digest, bad, add_bos)
