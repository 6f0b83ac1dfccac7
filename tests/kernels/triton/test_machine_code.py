"""The kernels as they are compiled, their PTX run on a CPU (tests/support/ptx): the same tests as in the interpreter, and what
only compiled code can do wrong: addresses that aren't aligned or beyond an array, and threads of a program that race."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# of which every kind is run in `make test`
SOME = [
    "test_encode.py::test_bytes_equal_the_torch_body_s[turbo4]",
    "test_encode.py::test_bytes_equal_the_torch_body_s[q5_1_rot]",
    "test_encode.py::test_trellis_bytes_equal_the_torch_body_s[tcq5-tcq6-32]",
    "test_encode.py::test_what_can_t_be_stored_is_told[q4_1]",
    "test_attention.py::test_trellis_types_at_other_dims[('tcq3', 'tcq4')-64]",
    "test_attention.py::test_f32_at_wide_heads[('f32', 'turbo4')-(256, 128)]",
    "test_attention.py::test_ragged_sequences_prompts_among_them[70]",
    "test_attention.py::test_softcap_sinks_and_scale[options2]",
    "test_spans.py::test_one_merge_where_v_has_one_basis[sinks]",
    "test_far.py::test_pages_beyond_4_gib",
]


def run(capability: int, words: list[str], cache: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PTX": str(capability), "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "skipped" not in done.stdout and " passed" in done.stdout, done.stdout[-3000:]


def test_some_for_an_h100(tmp_path: Path) -> None:
    run(90, SOME, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 89, 90, 100, 120])
def test_all_but_pairs(capability: int, tmp_path: Path) -> None:
    """All pairs take ten minutes more a capability: PTX=90 pytest tests/kernels/triton/test_attention.py -k every_pair."""
    files = ["test_attention.py", "test_encode.py", "test_spans.py", "test_far.py"]
    run(capability, [*files, "-k", "not every_pair"], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_barrier_is_needed_and_found_missing(capability: int, tmp_path: Path) -> None:
    """Without any one of a kernel's barriers two threads race, which the machine says: so it would if Triton left one out."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(HERE.parents[1] / "support"), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(HERE / "without_barriers.py"), str(capability)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = done.stdout.splitlines()
    assert len(found) > 20 and [line for line in found if line == "nothing"] == [], found
