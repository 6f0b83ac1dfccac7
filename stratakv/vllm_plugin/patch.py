"""The places in vLLM that are wrapped, and the versions in which they were tested. All else is vLLM's own interface.

    EngineArgs.create_engine_config   the profile is read and checked once, and goes to all ranks in the configuration
    attention.get_attn_backend        decoder layers get `PackedBackend`
    Attention.get_kv_cache_spec       a layer's blocks have the size of its packed pages
    Worker.initialize_from_config     each rank checks and logs what its layers store

Each wrapper hands on to vLLM's own where no profile is named.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from stratakv.errors import UserError
from stratakv.pages.layout import PAGE_TOKENS

TESTED = (0, 32), (0, 33)  # from, and before: on a CPU
_MARK = "stratakv"


def install() -> None:
    """Wrap what is to be wrapped, once in a process."""
    from vllm.engine.arg_utils import EngineArgs

    if _wrapped(EngineArgs, "create_engine_config", _create_engine_config) and version_refused() is None:
        from vllm.model_executor.layers.attention import attention
        from vllm.v1.worker.gpu_worker import Worker

        _wrapped(attention, "get_attn_backend", _get_attn_backend)
        _wrapped(attention.Attention, "get_kv_cache_spec", _get_kv_cache_spec)
        _wrapped(Worker, "initialize_from_config", _initialize_from_config)


def version_refused() -> str | None:
    """Why this vLLM can't run a profile, in words; None where it can."""
    from vllm import __version__

    return refused_version(__version__)


def refused_version(version: str) -> str | None:
    """The same of a version's text."""
    try:
        found = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    except ValueError:
        found = (0, 0)
    if TESTED[0] <= found < TESTED[1]:
        return None
    first, end = (".".join(map(str, each)) for each in TESTED)
    return (
        f"vLLM {version}: stratakv's plugin was tested with vLLM from {first} to before {end}, and changes its insides: install "
        "one of these, or leave the profile out"
    )


def _wrapped(owner: Any, name: str, wrapper: Callable[..., Any]) -> bool:
    """Put wrapper(original, ...) in the place of owner.name; False where it is there already."""
    original = getattr(owner, name)
    if getattr(original, _MARK, False):
        return False

    @wraps(original)
    def wrapping(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    setattr(wrapping, _MARK, True)
    setattr(owner, name, wrapping)
    return True


def _create_engine_config(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    from stratakv.vllm_plugin.front import ASSIGNMENT, PROFILE, assigned, named_profile

    try:
        text = named_profile(self.additional_config)
        if text is None:
            return original(self, *args, **kwargs)
        if why := version_refused():
            raise UserError(why)
        self.block_size = PAGE_TOKENS if self.block_size is None else self.block_size
        config = original(self, *args, **kwargs)
        assignment = assigned(text, config)
        config.additional_config = {**config.additional_config, PROFILE: text, ASSIGNMENT: assignment.to_json()}
        return config
    except UserError as error:
        if not _is_the_program():
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _is_the_program() -> bool:
    """Whether vLLM's own command runs, whose users want a line and no traceback; other programs get the exception."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return Path(sys.argv[0]).name == "vllm" or (spec is not None and spec.name.split(".")[0] == "vllm")


def _get_attn_backend(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    from vllm.config import get_current_vllm_config

    from stratakv.vllm_plugin.front import assignment_in

    found = original(*args, **kwargs)
    if assignment_in(get_current_vllm_config()) is None or kwargs.get("attn_type", "decoder") != "decoder":
        return found
    from stratakv.vllm_plugin.backend import PackedBackend

    return PackedBackend


def _get_kv_cache_spec(original: Callable[..., Any], self: Any, vllm_config: Any) -> Any:
    from stratakv.vllm_plugin.front import assignment_in

    spec = original(self, vllm_config)
    assignment = assignment_in(vllm_config)
    if assignment is None or spec is None:
        return spec
    from stratakv.vllm_plugin.specs import packed

    return packed(spec, self, assignment)


def _initialize_from_config(original: Callable[..., Any], self: Any, kv_cache_config: Any) -> Any:
    from stratakv.vllm_plugin.front import assignment_in

    assignment = assignment_in(self.vllm_config)
    if assignment is not None:
        from stratakv.vllm_plugin.specs import log_rank

        log_rank(self, kv_cache_config, assignment)
    return original(self, kv_cache_config)
