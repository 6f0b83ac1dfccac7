"""What `judge` writes, schema "stratakv/judge/1": a tuned profile against every baseline on text that its tuning never saw."""

from __future__ import annotations

from pathlib import Path

from stratakv.evidence.reading import FAR, INTERVAL, NUMBER, ROW, Data, read_checked

SCHEMA = "stratakv/judge/1"
_FIELDS = {
    "tuned": str,
    "model": {"name": str, "fingerprint": (str, None)},
    "text": {"name": str, "sha256": str, "tokens_scored": int},
    "context": int,
    "chunk": int,
    "chunks": int,
    "compute_dtype": str,
    "command": str,
    "machine": dict,
    "reference": str,
    "far": FAR,
    "rows": [{**ROW, "family": str}],
    "equal_bytes": {"at": int, "tolerance": NUMBER},
    "claims": [{"claim": str, "holds": (bool, None), "value": (*NUMBER, None), "ci95": INTERVAL}],
    "warnings": [str],
}


def read_judge(path: str | Path) -> Data:
    """The judgement in a file. Raises UserError for what is missing or of another kind."""
    return read_checked(path, SCHEMA, _FIELDS, "a file that `stratakv judge --json` wrote")
