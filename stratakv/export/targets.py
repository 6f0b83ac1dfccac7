"""The targets by the name that --to takes."""

from __future__ import annotations

from stratakv.errors import UserError
from stratakv.export.buun import Buun
from stratakv.export.fork import Fork
from stratakv.export.ik import Ik
from stratakv.export.profile_file import ProfileFile
from stratakv.export.target import Target
from stratakv.export.vllm import Vllm

TARGETS: dict[str, Target] = {"fork": Fork(), "ik": Ik(), "buun": Buun(), "vllm": Vllm(), "stratakv": ProfileFile()}


def target(name: str) -> Target:
    """The target of that name. Raises UserError for another one."""
    if name not in TARGETS:
        raise UserError(f"unknown target {name!r}: allowed are {', '.join(TARGETS)}")
    return TARGETS[name]
