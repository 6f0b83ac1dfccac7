"""What each client is tried at: functions by feature's name, run one after another; their outcomes as JSON on the last line."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable

URL, MODEL = (sys.argv[1], sys.argv[2]) if len(sys.argv) > 2 else ("", "")
V1 = f"{URL}/v1"
HELLO = "What is the capital of France? Answer with one word."


def report(features: dict[str, Callable[[], object]]) -> None:
    """Run them; "ok", or the traceback of what failed."""
    outcomes = {}
    for name, feature in features.items():
        try:
            feature()
            outcomes[name] = "ok"
        except Exception:
            outcomes[name] = traceback.format_exc()[-3000:]
    print(json.dumps(outcomes))
