"""Loading a model: GGUF or Hugging Face, with a look at the memory before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from stratakv.engine.attention import use
from stratakv.engine.cache import KVCache
from stratakv.engine.complete import check_complete, check_experts, check_used, unused_when_unpacked
from stratakv.engine.describe import ModelDescription, describe_model
from stratakv.engine.pieces import reads_in_pieces
from stratakv.engine.positions import learned_positions
from stratakv.errors import UserError
from stratakv.profile.geometry import ModelGeometry
from stratakv.weights import ggml
from stratakv.weights.build import CannotStayPackedError, PackedWeights, build_packed
from stratakv.weights.hand_over import handed_over
from stratakv.weights.size import packed_size

# Beside the weights there must be room for activations, the cache and the largest tensor while it is unpacked
WEIGHTS_HEADROOM = 1.1


@dataclass
class LoadedModel:
    """A model ready to run. weight_bytes: what its weights take in memory. packed: what of a GGUF file stays in its blocks,
    None where all is unpacked; notes: how the weights are held, a line each."""

    model: PreTrainedModel
    tokenizer: Any
    name: str
    fingerprint: str
    geometry: ModelGeometry
    weight_bytes: int
    warnings: tuple[str, ...] = ()
    packed: PackedWeights | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def reads_in_pieces(self) -> bool:
        """Whether a prompt in several forward calls is read as in one; tried at the first question."""
        return reads_in_pieces(self.model, self.geometry)

    @cached_property
    def positions(self) -> int | None:
        """How many positions the model has learned, None where it computes them."""
        return learned_positions(self.model)


def load_model(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    packed: bool = True,
    exact: bool = False,
    device: str = "cpu",
) -> LoadedModel:
    """Load a GGUF file, a directory in Hugging Face format, a hub name, or "embedded".

    dtype: of activations and of weights that are unpacked. packed: keep a GGUF file's matrices in its blocks where ggml's
    libraries are installed (such a model stays on the CPU); else they are unpacked into dtype. exact: packed matrices multiply in
    float32 instead of with activations of 8 or 16 bits, slower, for measuring. device: where the model and its caches are;
    matrices stay packed on a CPU only. Raises UserError where the model can't be read, or where its weights don't fit in the
    memory that is free, of this machine and of the device.
    """
    description = describe_model(source)
    tokenizer = load_tokenizer(description)
    weights = load_weights(description, dtype=dtype, packed=packed and device == "cpu", exact=exact)
    if device != "cpu":
        _move(weights.model, device)
    return LoadedModel(
        use(weights.model),
        tokenizer,
        description.name,
        description.fingerprint,
        description.geometry,
        weights.nbytes,
        description.warnings,
        weights.packed,
        weights.notes,
    )


def _move(model: Any, device: str) -> None:
    try:
        model.to(device)
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"the weights don't fit in the memory of {device}: take --dtype bf16, or a smaller model"
        ) from error


@dataclass(frozen=True)
class Weights:
    """A model in evaluation mode without its tokenizer. nbytes: what its weights take; packed, notes: as in LoadedModel."""

    model: Any
    nbytes: int
    packed: PackedWeights | None
    notes: tuple[str, ...]


def load_weights(
    description: ModelDescription, *, dtype: torch.dtype = torch.float32, packed: bool = True, exact: bool = False
) -> Weights:
    """The model alone; arguments and errors as for `load_model`."""
    notes = []
    if description.gguf:
        check_experts(description)
        why = ggml.unavailable() if packed else "as asked for"
        if why is None:
            check_memory(description.name, packed_size(description.path, dtype.itemsize))
            try:
                model, kept = build_packed(description.path, description.config, dtype, _lossless, exact=exact)
                lines = [f"  {name} is unpacked: {why}" for name, why in kept.unpacked]
                lines += check_used(description, kept.unused)
                return Weights(model, kept.packed_bytes + kept.plain_bytes, kept, (kept.line(), *lines))
            except CannotStayPackedError as error:
                why = str(error)
        notes.append(_unpacked_note(description, dtype, why))
    check_memory(description.name, description.values * dtype.itemsize)
    try:
        with _no_progress_bars(), _header_handed_over(description):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                **_from(description),
                config=description.config,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # to name them
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{description.path} can't be loaded by transformers: {first}") from error
    model, found = loaded
    if description.gguf:
        notes += check_used(description, unused_when_unpacked(description.gguf, model, found))
    check_complete(description, found)
    model.eval()
    return Weights(model, sum(parameter.nbytes for parameter in model.parameters()), None, tuple(notes))


def _unpacked_note(description: ModelDescription, dtype: torch.dtype, why: str) -> str:
    assert description.gguf is not None
    needed, there = description.values * dtype.itemsize, description.gguf.nbytes
    hint = f"; {ggml.HINT}" if "not installed" in why else ""
    return f"weights are unpacked from {there / 2**20:,.0f} to {needed / 2**20:,.0f} MiB ({why}){hint}"


def check_memory(name: str, needed: int) -> None:
    """Refuse what can't fit: needed bytes of weights against the memory that is free, a container's limit included."""
    free = free_memory()
    if needed * WEIGHTS_HEADROOM > free:
        raise UserError(
            f"{name} needs {needed / 2**30:.2f} GiB for its weights and some for running, {free / 2**30:.2f} GiB are free: "
            "close other programs, or take a smaller model"
        )


def free_memory(container: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that programs can have. container: where the limits of this one are said; files that it has read count as used
    there, though the system gives their memory to whoever needs it."""
    free = int(psutil.virtual_memory().available)
    limit, used, stat = (container / f"memory.{name}" for name in ("max", "current", "stat"))
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        counts = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
        free = min(free, int(text) - int(used.read_text()) + int(counts.get("inactive_file", 0)))
    return free


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """transformers draws two bars while it reads weights from the disk, one of them whatever its settings say."""
    gguf_loader: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    bar, enabled = gguf_loader.tqdm, logging.is_progress_bar_enabled()
    gguf_loader.tqdm = partial(bar, disable=True)
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # its report of missing weights is our error
    try:
        yield
    finally:
        gguf_loader.tqdm = bar
        logging.set_verbosity(verbosity)
        if enabled:
            logging.enable_progress_bar()


def _header_handed_over(description: ModelDescription) -> AbstractContextManager[None]:
    gguf = description.gguf
    return handed_over(gguf.header, gguf.hidden_fields) if gguf else nullcontext()


def _from(description: ModelDescription) -> dict[str, Any]:
    if description.gguf:
        return {"pretrained_model_name_or_path": description.path.parent, "gguf_file": description.path.name}
    return {"pretrained_model_name_or_path": description.path}


def load_tokenizer(description: ModelDescription) -> Any:
    """The model's tokenizer, of transformers. UserError where it has none that can be read."""
    try:
        with _header_handed_over(description):
            tokenizer = AutoTokenizer.from_pretrained(**_from(description))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{description.path} has no tokenizer that transformers can read: {first}") from error
    if description.gguf and description.gguf.vocabulary:
        _drop_tokens_beyond(tokenizer, description.gguf.vocabulary)
    return tokenizer


def _lossless(config: Any) -> KVCache:
    """A cache that stores what it is given."""
    return KVCache(config, "f32")


def _drop_tokens_beyond(tokenizer: Any, vocabulary: int) -> None:
    """Remove tokens that transformers adds to a GGUF's vocabulary by itself: the embedding has no row for them."""
    if all(id_ < vocabulary for id_ in tokenizer.added_tokens_decoder):
        return
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = [token for token in state["added_tokens"] if token["id"] < vocabulary]
    state["added_tokens"] = kept
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(state))
