"""Slots are never given out twice, come back when nothing refers to them, and empty slabs go back to the system."""

from __future__ import annotations

import gc

from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.cache import slabs


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=120))
def test_slots_in_use_never_overlap(history: list[tuple[bool, int]]) -> None:
    size = slabs.SLAB_BYTES // 5 - 1
    held: list[tuple[slabs.Slot, int]] = []
    for number, (taking, which) in enumerate(history):
        if taking or not held:
            slot = slabs.take(size)
            slot.data[0] = slot.data[-1] = number % 251
            held.append((slot, number % 251))
        else:
            held.pop(which % len(held))
    assert len({slot.data.data_ptr() for slot, _ in held}) == len(held)
    for slot, value in held:
        assert slot.data.numel() == size and int(slot.data[0]) == int(slot.data[-1]) == value


def test_empty_slabs_are_given_back() -> None:
    size = slabs.SLAB_BYTES // 4 - 3
    held = [slabs.take(size) for _ in range(40)]
    assert len({id(slot.slab) for slot in held}) == 10
    one = held.pop()
    del held
    gc.collect()
    assert [slab.free.count(one.index) for slab in slabs._OPEN[size]] == [0]
    del one
    gc.collect()
    assert slabs._OPEN[size] == []
