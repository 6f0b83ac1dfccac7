"""Packed pages as an attention backend of vLLM's: its block tensor of a layer is a pool, its batch a step."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.attention.attention import get_attention_context
from vllm.model_executor.models.utils import extract_layer_index
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionBackend, AttentionImpl, AttentionMetadataBuilder, AttentionType
from vllm.v1.kv_cache_interface import KVCacheLayout

from stratakv.errors import UserError
from stratakv.kernels.choice import kernel_for, order_of
from stratakv.kernels.kernel import Kernel, Options
from stratakv.kernels.status import Status
from stratakv.kernels.step import Step
from stratakv.pages.layout import PAGE_TOKENS, PageLayout
from stratakv.pages.pool import Pool
from stratakv.profile import LayerStorage
from stratakv.vllm_plugin.front import assignment_in
from stratakv.vllm_plugin.step import step_of

logger = init_logger("vllm.plugins.stratakv")


class PackedBackend(AttentionBackend):
    """Pages of 128 tokens, each layer's of its own size."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float32, torch.bfloat16, torch.float16]
    supported_kv_cache_dtypes: ClassVar[list[Any]] = ["auto"]
    forward_includes_kv_cache_update = False

    @staticmethod
    def get_name() -> str:
        """What vLLM looks up among its own names: on a CPU there is one, elsewhere one is kept for others' backends."""
        return "CPU_ATTN" if current_platform.is_cpu() else "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[PackedImpl]:
        """See AttentionBackend."""
        return PackedImpl

    @staticmethod
    def get_builder_cls() -> type[StepBuilder]:
        """See AttentionBackend."""
        return StepBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        """Ours: vLLM cuts larger blocks into pages."""
        return [PAGE_TOKENS]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """A page's bytes side by side; where its layer's next page lies doesn't matter."""
        return (KVCacheLayout.LBHNC, KVCacheLayout.BLHNC)

    @classmethod
    def supports_sink(cls) -> bool:
        """See AttentionBackend."""
        return True

    @classmethod
    def supports_sliding_window(cls) -> bool:
        """See AttentionBackend."""
        return True


class Batch:
    """One batch of a group of layers: its steps, one a window, made when a layer first asks. A device is waited for here,
    once a batch, since kernels take numbers of pages from the host."""

    def __init__(self, common: Any) -> None:
        if common.causal is not True:
            raise UserError("stratakv: tokens that see later ones (prefix-LM, images) are not stored in packed pages")
        self.num_actual_tokens = int(common.query_start_loc_cpu[-1])  # without padding
        self.slots = np.ascontiguousarray(_numbers(common.slot_mapping)[: self.num_actual_tokens], dtype=np.int64)
        self._tables, self._lengths = _numbers(common.block_table_tensor), _numbers(common.seq_lens)
        self._query_start = _numbers(common.query_start_loc_cpu)
        prefill = common.is_prefilling
        self._prefill = None if prefill is None else np.ascontiguousarray(_numbers(prefill), dtype=np.bool_)
        self._steps: dict[int | None, Step] = {}

    def step(self, window: int | None) -> Step:
        """The step where each query token sees all tokens, or itself and window - 1 before it."""
        if window not in self._steps:
            self._steps[window] = step_of(
                self._tables, self._query_start, self._lengths, self.slots, window, self._prefill
            )
        return self._steps[window]


def _numbers(values: torch.Tensor) -> NDArray[Any]:
    return values.cpu().numpy()


class StepBuilder(AttentionMetadataBuilder[Batch]):
    """Layers of unlike types have builders of their own, and one batch all the same."""

    _last: ClassVar[tuple[Any, Batch] | None] = None

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Batch:
        """See AttentionMetadataBuilder."""
        last = StepBuilder._last
        if last is None or last[0] is not common_attn_metadata:
            Bound.report()
            last = StepBuilder._last = common_attn_metadata, Batch(common_attn_metadata)
        return last[1]


class PackedImpl(AttentionImpl[Batch]):
    """One layer's attention."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int,
        alibi_slopes: list[float] | None,
        sliding_window: int | None,
        kv_cache_dtype: str,
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: torch.Tensor | None = None,
    ) -> None:
        if alibi_slopes is not None:
            raise UserError("stratakv: ALiBi is not known to its kernels: run this model without a profile")
        self.num_heads, self.head_size, self.num_kv_heads = num_heads, head_size, num_kv_heads
        self.scale, self.kv_cache_dtype, self.attn_type = float(scale), kv_cache_dtype, attn_type
        self.sliding_window, self.sinks = sliding_window, sinks
        self.logits_soft_cap = logits_soft_cap
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        self._assignment = assignment_in(get_current_vllm_config())
        self._bound: Bound | None = None

    @cached_property
    def options(self) -> Options:
        """Made at the first step: sinks are weights, which are loaded after this layer is made."""
        return Options(self.scale, self.logits_soft_cap or None, self.sinks)

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Batch | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """query: [tokens, q_heads, k_dim]; output: [tokens, q_heads, v_dim], written. Tokens beyond the batch's are padding."""
        if output_scale is not None or output_block_scale is not None:
            raise UserError("stratakv: quantized attention output is not known to its kernels")
        if attn_metadata is None:  # vLLM tries the model out, without a cache
            return output.zero_()
        bound, tokens = self._on(layer, kv_cache), attn_metadata.num_actual_tokens
        step = attn_metadata.step(self.sliding_window)
        output[:tokens] = bound.kernel.attend(query[:tokens], bound.pool, step, self.options).out
        return output

    def do_kv_cache_update(
        self, layer: Any, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor
    ) -> None:
        """Encode key and value [tokens, kv_heads, head_dim] into their slots."""
        batch = get_attention_context(layer.layer_name)[0]
        if batch is None:  # vLLM tries the model out
            return
        bound, count = self._on(layer, kv_cache), len(batch.slots)
        bound.kernel.append(bound.pool, key[:count], value[:count], batch.slots, bound.codes)

    def _on(self, layer: Any, kv_cache: torch.Tensor) -> Bound:
        if self._bound is None or self._bound.memory is not kv_cache:
            assert self._assignment is not None
            index = extract_layer_index(self.kv_sharing_target_layer_name or layer.layer_name)
            dims = layer.head_size, layer.head_size_v
            self._bound = Bound(index, self._assignment.storage(index), dims, self.num_kv_heads, kv_cache)
        return self._bound


class Bound:
    """A layer's pages in vLLM's memory, uint8 [blocks, kv_heads, 128, bytes of a token's K and V]."""

    _all: ClassVar[WeakSet[Bound]] = WeakSet()

    def __init__(
        self, layer: int, storage: LayerStorage, head_dim: tuple[int, int], kv_heads: int, memory: torch.Tensor
    ) -> None:
        layout = PageLayout(storage.k, storage.v, *head_dim, kv_heads, order=order_of(memory.device))
        self.layer, self.memory = layer, memory
        self.pool = Pool(layout, memory.as_strided((len(memory), layout.page_bytes), (memory.stride(0), 1)))
        self.kernel: Kernel = kernel_for(layout, memory.device)
        self.status = Status()
        self.status.add(f"layer {layer}", (storage.k, storage.v))
        self.codes = self.status.of(0, memory.device)
        Bound._all.add(self)

    @staticmethod
    def report() -> None:
        """Log what the batch before couldn't store: vLLM can't end one request from here, and the others are good."""
        bounds = list(Bound._all)
        if not bounds or not bool(torch.stack([bound.codes for bound in bounds]).any()):
            return
        for bound in bounds:
            try:
                bound.status.check()
            except UserError as error:
                logger.error("%s; the answers that are computed from it are worth nothing", error)
