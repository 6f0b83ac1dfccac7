"""Pages: none lost, none given twice, cached ones given up last-used last."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stratakv.pages.allocator import PageAllocator


class PoolMachine(RuleBasedStateMachine):
    """Random use against a plain model: who holds which page."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PageAllocator(6)
        self.held: list[int] = []
        self.keys: dict[bytes, int] = {}

    @rule()
    def allocate(self) -> None:
        before = self.pool.available
        page = self.pool.allocate()
        assert (page is None) == (before == 0)
        if page is not None:
            assert page not in self.held
            self.held.append(page)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(self.held))
        self.pool.share(page)
        self.held.append(page)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(self.held))
        self.held.remove(page)
        self.pool.release(page)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), key=st.sampled_from([b"a", b"b", b"c"]))
    def publish(self, data: st.DataObject, key: bytes) -> None:
        self.pool.publish(data.draw(st.sampled_from(self.held)), key)

    @rule(key=st.sampled_from([b"a", b"b", b"c"]))
    def share_found(self, key: bytes) -> None:
        page = self.pool.lookup(key)
        if page is not None:
            self.pool.share(page)
            self.held.append(page)

    @rule(key=st.sampled_from([b"a", b"b", b"c"]))
    def discard(self, key: bytes) -> None:
        self.pool.discard(key)
        assert self.pool.lookup(key) is None

    @rule()
    def clear(self) -> None:
        self.pool.clear_cached()
        assert self.pool.cached == 0

    @invariant()
    def no_page_lost(self) -> None:
        assert self.pool.used == len(set(self.held))
        assert self.pool.used + self.pool.free + self.pool.cached == self.pool.capacity
        assert self.pool.available == self.pool.free + self.pool.cached


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase


def test_least_recently_used_goes_first() -> None:
    pool = PageAllocator(2)
    first, second = pool.allocate(), pool.allocate()
    assert (first, second) == (0, 1)
    pool.publish(0, b"first")
    pool.publish(1, b"second")
    pool.release(0)
    pool.release(1)
    pool.share(0)  # used once more
    pool.release(0)
    assert pool.allocate() == 1
    assert pool.lookup(b"second") is None and pool.lookup(b"first") == 0


def test_first_page_of_a_key_keeps_it() -> None:
    pool = PageAllocator(2)
    pool.allocate()
    pool.allocate()
    pool.publish(0, b"key")
    pool.publish(1, b"key")
    assert pool.lookup(b"key") == 0
    pool.release(1)
    assert pool.free == 1
