from __future__ import annotations

import pytest

from stratakv.bench.serve.process import our_server
from stratakv.errors import UserError


def test_a_server_that_ends_says_why() -> None:
    with (
        pytest.raises(UserError, match=r"ended with code 2.*--parallel 0"),
        our_server("embedded", "f16", 1, ["-np", "0"]),
    ):
        pass
