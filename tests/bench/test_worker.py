from __future__ import annotations

import sys

import pytest

from stratakv.bench.worker import Worker
from stratakv.errors import UserError

ECHO = "import sys\nfor line in sys.stdin: print(line.strip(), flush=True)"


def test_worker_answers_and_its_peak_is_known() -> None:
    with Worker([sys.executable, "-c", ECHO], "echo") as worker:
        assert worker.ask(do="x", n=1) == {"do": "x", "n": 1}
        worker.reset_peak()
        if sys.platform == "linux":
            assert 2**20 < (worker.peak_bytes() or 0) < 2**30
        with pytest.raises(UserError, match="echo: no"):
            worker.ask(error="no")


def test_worker_that_dies_says_why() -> None:
    code = "import sys; sys.exit('out of luck')"
    with Worker([sys.executable, "-c", code], "unlucky") as worker, pytest.raises(UserError, match="out of luck"):
        worker.ask(do="x")


def test_worker_that_is_no_program() -> None:
    with pytest.raises(UserError, match="cannot run /nowhere"):
        Worker(["/nowhere"], "nothing")
