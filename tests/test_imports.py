"""Every module can be the first one that is imported: there are no circles between packages."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import stratakv

SCRIPT = """
import importlib, json, sys
import torch, transformers

failed = {}
for name in json.loads(sys.argv[1]):
    for loaded in [each for each in sys.modules if each.split(".")[0] == "stratakv" and each != "stratakv._native"]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except ImportError as error:
        if error.name.split(".")[0] == "stratakv":  # others lack what only their host brings along, vLLM for example
            failed[name] = str(error)
print(json.dumps(failed))
"""


def test_every_module_can_come_first() -> None:
    modules = [module.name for module in pkgutil.walk_packages(stratakv.__path__, "stratakv.")]
    modules = [name for name in modules if name not in ("stratakv.__main__", "stratakv._native")]
    assert len(modules) > 60
    command = [sys.executable, "-c", SCRIPT, json.dumps(modules)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {}
