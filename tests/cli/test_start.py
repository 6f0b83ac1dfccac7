"""What commands import before they need it: seconds that a user waits."""

from __future__ import annotations

import json
import subprocess
import sys

from stratakv.cli.main import COMMANDS

SCRIPT = """
import contextlib, io, json, sys
from stratakv.cli.main import main
found = {}
for name in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main([name, "--help"])
    found[name] = [m for m in ("torch", "numpy", "transformers") if m in sys.modules]
with contextlib.redirect_stdout(io.StringIO()):
    main(["show", "-m", "embedded", "-c", "4096"])
found["shown"] = [m for m in ("transformers.modeling_utils", "scipy") if m in sys.modules]
print(json.dumps(found))
"""


def test_options_need_no_torch_and_show_no_model_code() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(list(COMMANDS))], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {name: [] for name in (*COMMANDS, "shown")}
