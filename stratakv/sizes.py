"""Numbers of bytes as people read them."""

from __future__ import annotations


def size_text(size: int) -> str:
    """'1.50 GiB', '310.00 MiB', '96 bytes'."""
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} bytes"
