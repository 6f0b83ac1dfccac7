"""The pages of a server's cache: how many there are, which are in use, and which prompts lie in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.pages.allocator import PageAllocator
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.profile import Profile
from stratakv.serve.choose_runner import choose_runner
from stratakv.serve.groups import capacities, window_groups
from stratakv.serve.request import Limits
from stratakv.serve.runner import BatchedRunner
from stratakv.serve.sequence import page_keys
from stratakv.weights.sample import weights_sample


@dataclass(frozen=True)
class Held:
    """Whole pages at a prompt's beginning that nobody takes until they are let go.

    tokens: of the pages. pages: of each group, the pages that a sequence needs to go on after them, and their ids.
    """

    tokens: tuple[int, ...]
    pages: list[dict[int, int]]


class PagedCache:
    """The pages of all layers, in groups of layers that need the same ones, and what runs the model over them.

    groups, pools: in the same order. runner: computes steps. shares: whether prompts with the same beginning share pages.
    UserError where the memory is too small for one request of `limits.context` tokens.
    """

    def __init__(self, loaded: LoadedModel, profile: Profile, limits: Limits) -> None:
        self.model, self.fingerprint, self.profile = loaded.name, loaded.fingerprint, profile
        self._model = loaded.model
        self.groups = window_groups(profile)
        pages = capacities(self.groups, limits.cache_bytes, limits.slots, limits.context, limits.prefill_chunk)
        for group, capacity in zip(self.groups, pages, strict=True):
            needed = group.pages_for(limits.context, limits.prefill_chunk)
            if capacity < needed:
                kind = "pages" if group.part == "whole" else f"{group.part} pages"
                raise UserError(
                    f"{limits.cache_bytes:,} bytes of cache hold {capacity} {kind}, one request of "
                    f"{limits.context:,} tokens needs {needed} of {group.page_bytes:,} bytes: give more memory, a "
                    "smaller context, or a profile with fewer bytes a token"
                )
        self.pools = [PageAllocator(capacity) for capacity in pages]
        self.runner = choose_runner(loaded, profile, self.groups, pages)
        self.shares = limits.prefix_cache and isinstance(self.runner, BatchedRunner)
        self.slots: list[tuple[tuple[int, ...], list[bytes]]] = [((), []) for _ in range(limits.slots)]
        self._salt = f"{loaded.fingerprint}\n{profile.pairs}\n{profile.spans}".encode()

    @cached_property
    def weights(self) -> str:
        """A sample of the model's weights, for slots on disk: fine-tuned models have the original's fingerprint."""
        return weights_sample(self._model)

    @property
    def nbytes(self) -> int:
        """Of all pages."""
        return sum(group.page_bytes * pool.capacity for group, pool in zip(self.groups, self.pools, strict=True))

    @property
    def used_bytes(self) -> int:
        """Of the pages that requests hold."""
        return sum(group.page_bytes * pool.used for group, pool in zip(self.groups, self.pools, strict=True))

    def keys(self, tokens: tuple[int, ...]) -> list[bytes]:
        """Names of a prompt's whole pages: of what they hold, for this model and profile."""
        return page_keys(tokens, self._salt)

    def hold(self, tokens: tuple[int, ...], keys: list[bytes], pages: int) -> Held:
        """Keep the first `pages` pages of a prompt, all of them published."""
        held = []
        for group, pool in zip(self.groups, self.pools, strict=True):
            found = ((index, pool.lookup(keys[index])) for index in group.prefix(pages))
            ids = {index: page for index, page in found if page is not None}
            for page in ids.values():
                pool.share(page)
            held.append(ids)
        return Held(tokens[: pages * PAGE_TOKENS], held)

    def take(self, tokens: tuple[int, ...]) -> Held:
        """Pages for whole pages of a prompt, still empty. UserError where not as many are free."""
        needs = [list(group.prefix(len(tokens) // PAGE_TOKENS)) for group in self.groups]
        for needed, pool in zip(needs, self.pools, strict=True):
            if pool.available < len(needed):
                raise UserError(
                    f"the file's tokens need {len(needed)} pages, {pool.available} are not in use: try again later"
                )
        pages = [
            {index: page for index in needed if (page := pool.allocate()) is not None}
            for needed, pool in zip(needs, self.pools, strict=True)
        ]
        return Held(tokens, pages)

    def publish(self, held: Held) -> list[bytes]:
        """Let later prompts that begin with these tokens find the pages; their names."""
        keys = self.keys(held.tokens)
        for pool, pages in zip(self.pools, held.pages, strict=True):
            for index, page in pages.items():
                pool.publish(page, keys[index])
        return keys

    def let_go(self, held: Held) -> None:
        """Nobody needs them for this any more; the oldest come last, so that they are taken last."""
        for pool, pages in zip(self.pools, held.pages, strict=True):
            for page in reversed(pages.values()):
                pool.release(page)

    def forget(self, slot: int) -> int:
        """Forget the prompt that last ran in a slot, and its pages where no other request uses them; its number of tokens."""
        tokens, keys = self.slots[slot]
        for pool in self.pools:
            for key in keys:
                pool.discard(key)
        self.slots[slot] = ((), [])
        return len(tokens)

    def read(self, held: Held) -> list[Callable[[], torch.Tensor]]:
        """For each layer of each group: what reads its pages' canonical bytes, uint8 [pages, kv_heads, PAGE_TOKENS, bytes]."""
        return [
            lambda pool=pool, pages=pages: pool.read(self._numbers(pages)).cpu()  # type: ignore[misc]
            for pools, pages in zip(self._batched().pools, held.pages, strict=True)
            for pool in pools
        ]

    def write(self, held: Held, states: list[torch.Tensor]) -> None:
        """Put canonical bytes, as `read` gives them, into pages that nobody reads yet."""
        rest = iter(states)
        for pools, pages in zip(self._batched().pools, held.pages, strict=True):
            for pool in pools:
                pool.write(self._numbers(pages), next(rest).to(self.runner.device))

    def _numbers(self, pages: dict[int, int]) -> torch.Tensor:
        return torch.tensor(list(pages.values()), dtype=torch.long, device=self.runner.device)

    def _batched(self) -> BatchedRunner:
        assert isinstance(self.runner, BatchedRunner)
        return self.runner
