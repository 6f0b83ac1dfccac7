"""The machine that runs PTX: numbers as the instructions' documentation has them, and faults that a card would answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from ptx.arithmetic import ONE_TYPE, compared, converted
from ptx.machine import Observer, run
from ptx.memory import GpuError
from ptx.program import Address, parsed
from ptx.traffic import Traffic

HEAD = """
.visible .entry test(
	.param .u64 .ptr .global .align 1 p0,
	.param .u64 .ptr .global .align 1 p1
)
.reqntid {threads}
{{
	ld.param.b64 	%rd1, [p0];
	ld.param.b64 	%rd2, [p1];
	mov.u32 	%r1, %tid.x;
	mov.b32 	%r2, global_smem;
	mad.wide.u32 	%rd3, %r1, 4, %rd1;   // this thread's word of the input
	mad.wide.u32 	%rd4, %r1, 4, %rd2;
	ld.global.b32 	{{ %r3 }}, [ %rd3 + 0 ];
	shl.b32 	%r4, %r1, 2;
	add.s32 	%r5, %r2, %r4;             // its word of shared memory
	xor.b32 	%r6, %r4, 4;
	add.s32 	%r6, %r2, %r6;             // its neighbour's
	xor.b32 	%r7, %r4, 128;
	add.s32 	%r7, %r2, %r7;             // the other warp's
{body}
	st.global.b32 	[ %rd4 + 0 ], {{ %r3 }};
	ret;
}}
"""


def outcome(
    body: str, given: Sequence[int] = range(64), threads: int = 64, observer: Observer | None = None
) -> list[int]:
    """%r3 of all threads after the body, which begins with what they were given."""
    x, y = torch.tensor(list(given), dtype=torch.int32), torch.zeros(threads, dtype=torch.int32)
    run(parsed(HEAD.format(body=body, threads=threads)), (1, 1, 1), [x, y], 1024, observer=observer)
    found: list[int] = y.tolist()
    return found


def test_instructions_are_read() -> None:
    body = "@!%p1 ld.global.v2.b32 { %r1, %r2 }, [ %rd1 + 8 ];\n\tmov.b32 %r4, 0f3F800000;\nselp.b32 %r5, -1, 0x7632U, %p1;"
    first, second, third, *_ = parsed(HEAD.format(body=body, threads=32)).instructions[13:]
    assert (first.name, first.predicate, first.unless) == ("ld.global.v2.b32", "%p1", True)
    assert first.operands == (("%r1", "%r2"), Address("%rd1", 8))
    assert second.operands == ("%r4", 0x3F800000) and third.operands == ("%r5", -1, 0x7632, "%p1")


def test_a_byte_permutation() -> None:
    """Bytes 0 to 3 are a's, 4 to 7 b's; with a selector's bit 3 a byte's sign fills its place."""
    a, b = np.array([0x33228100], np.uint32), np.array([0x77665544], np.uint32)
    assert ONE_TYPE["prmt"](a, b, np.array([0x7531], np.uint32)).tolist() == [0x77553381]
    assert ONE_TYPE["prmt"](a, b, np.array([0x98C0], np.uint32)).tolist() == [0xFF000000]


def test_numbers_that_are_none_and_zeros() -> None:
    a, b = np.array([np.nan, 0.0, -0.0, 2], np.float32), np.array([1, -0.0, 0.0, np.nan], np.float32)
    assert np.array_equal(ONE_TYPE["max"](a, b), np.array([1, 0, 0, 2], np.float32))
    assert np.signbit(ONE_TYPE["max"](a, b)).tolist() == [False] * 4
    assert np.signbit(ONE_TYPE["min"](a, b)).tolist() == [False, True, True, False]
    assert compared("ne", a, b).tolist() == [False] * 4 and compared("neu", a, b).tolist() == [True, False, False, True]


def test_shifts_and_fields_beyond_their_width() -> None:
    x = np.array([-8, 8], np.int32)
    assert ONE_TYPE["shr"](x, np.array([40, 2], np.uint32)).tolist() == [-1, 2]
    assert ONE_TYPE["shl"](x.view(np.uint32), np.array([32, 29], np.uint32)).tolist() == [0, 0]
    field = np.array([0b1101_0000], np.int32), np.array([4], np.uint32), np.array([4], np.uint32)
    assert ONE_TYPE["bfe"](*field).tolist() == [-3]


def test_conversions() -> None:
    x = np.array([2.5, -1.5, np.nan, 1e20], np.float32)
    assert converted(x, "s32", "rzi").tolist() == [2, -1, 0, 2**31 - 1]
    ties = np.array([0x3F801000, 0x3F800FFF], np.uint32).view(np.float32)
    assert converted(ties, "tf32", "rna").tolist() == [0x3F802000, 0x3F800000]


def test_threads_that_part_meet_again() -> None:
    """Even threads go around a loop as often as they were given, then all are added up over their warp."""
    body = """
	and.b32 	%r8, %r1, 1;
	setp.ne.b32 	%p1, %r8, 0;
	mov.b32 	%r9, 0;
	@%p1 bra 	$L__end;
	mov.b32 	%r10, %r3;
$L__loop:
	setp.le.s32 	%p2, %r10, 0;
	@%p2 bra 	$L__end;
	add.s32 	%r9, %r9, 2;
	add.s32 	%r10, %r10, -1;
	bra.uni 	$L__loop;
$L__end:
	redux.sync.add.s32 %r3, %r9, -1;
"""
    assert outcome(body) == [2 * sum(range(0, 32, 2))] * 32 + [2 * sum(range(32, 64, 2))] * 32


def test_words_are_exchanged_between_warps() -> None:
    body = "st.shared.b32 [ %r5 + 0 ], %r3;\nbar.sync 0;\nld.shared.b32 %r3, [ %r7 + 0 ];"
    assert outcome(body) == [each ^ 32 for each in range(64)]


STORE = "st.shared.b32 [ %r5 + 0 ], %r3;\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (STORE + "ld.shared.b32 %r3, [ %r7 + 0 ];", "another thread may not yet have written there"),
        (STORE + "ld.shared.b32 %r3, [ %r6 + 0 ];", "another thread may not yet have written there"),
        (STORE + "bar.warp.sync -1;\nld.shared.b32 %r3, [ %r7 + 0 ];", "another thread may not yet have written there"),
        (STORE + "bar.sync 0;\nld.shared.b32 %r8, [ %r7 + 0 ];\n" + STORE, "a place is written that another warp may"),
        (STORE + "st.shared.b32 [ %r7 + 0 ], %r3;", "another thread may not yet have written there"),
        ("st.shared.b32 [ %r2 + 0 ], %r3;", "threads write different values to one place at once"),
        ("ld.shared.b32 %r3, [ %r5 + 0 ];", "shared memory is read that nobody wrote"),
        ("ld.shared.b32 %r3, [ %r5 + 1000 ];", "outside of 1024 bytes of shared memory"),
        ("ld.shared.v2.b32 { %r3, %r8 }, [ %r5 + 0 ];", "misaligned address in shared memory"),
        ("ld.global.v2.b32 { %r3, %r8 }, [ %rd3 + 0 ];", "misaligned address"),
        ("ld.global.b32 { %r3 }, [ %rd3 + 4 ];", "address outside of all arrays"),
        ("ld.global.b32 { %r3 }, [ %rd3 + -4 ];", "address outside of all arrays"),
        ("setp.eq.b32 %p1, %r1, 7;\n@%p1 bra $L__end;\nbar.sync 0;\n$L__end:", "not all threads come to"),
        ("setp.eq.b32 %p1, %r1, 7;\n@%p1 shfl.sync.bfly.b32 %r3, %r3, 1, 31, -1;", "not all threads come to"),
        ("cp.async.ca.shared.global [ %r5 + 0 ], [ %rd3 + 0 ], 0x4;\nld.shared.b32 %r3, [ %r5 + 0 ];", "waited for"),
    ],
    ids=lambda each: each.strip().splitlines()[-1][:40] if "%" in each else "",
)
def test_faults(body: str, message: str) -> None:
    with pytest.raises(GpuError, match=message):
        outcome(body)


def test_within_a_warp_its_own_barrier_will_do() -> None:
    body = STORE + "bar.warp.sync -1;\nld.shared.b32 %r3, [ %r6 + 0 ];"
    assert outcome(body) == [each ^ 1 for each in range(64)]


def test_a_copy_that_is_waited_for() -> None:
    body = (
        "cp.async.ca.shared.global [ %r5 + 0 ], [ %rd3 + 0 ], 0x4;\ncp.async.commit_group;\n"
        "cp.async.wait_group 0;\nbar.sync 0;\nld.shared.b32 %r3, [ %r7 + 0 ];"
    )
    assert outcome(body) == [each ^ 32 for each in range(64)]
    with pytest.raises(GpuError, match="waited for"):
        outcome(body.replace("wait_group 0", "wait_group 1"))


def test_an_instruction_that_is_not_known_is_no_instruction() -> None:
    with pytest.raises(ValueError, match="isn't known"):
        outcome("vote.sync.all.pred %p1, %p1, -1;")


def test_traffic_is_counted() -> None:
    """Of two warps: each reads and writes 128 bytes of memory, in whole sectors."""
    still, apart = Traffic(), Traffic()
    outcome(STORE, observer=still)
    assert (still.wanted, still.sectors, still.cycles, still.ideal) == (512, 512, 2, 2)
    outcome("shl.b32 %r8, %r1, 4;\nadd.s32 %r8, %r2, %r8;\nst.shared.b32 [ %r8 + 0 ], %r3;", observer=apart)
    assert (apart.cycles, apart.ideal) == (8, 2), "16 bytes apart: four threads a bank"
