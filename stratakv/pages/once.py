"""What others make of a value, kept with it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, TypeVar

T = TypeVar("T")


class Once:
    """A value that is asked again and again for the same thing: a kernel's own form of it, for example."""

    @cached_property
    def _made(self) -> dict[Hashable, Any]:
        return {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes of it, made once."""
        if key not in self._made:
            self._made[key] = make()
        found: T = self._made[key]
        return found
