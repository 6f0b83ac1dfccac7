"""Writes the package's two texts out of Dracula: whole chapters, early ones for tuning and late ones for judging.

`.venv/bin/python tools/make_embedded_texts.py ../shared/corpus/heldout/dracula.txt`
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TUNING = ("I", "VII")  # first and last chapter: 198 kB
JUDGING = ("XXI", "XXVI")  # 193 kB, thirteen chapters later
HEADING = re.compile(rb"^CHAPTER ([IVXL]+)$", re.MULTILINE)


def chapters(book: bytes, first: str, last: str) -> bytes:
    """The chapters `first` to `last` (Roman numerals) of `book` byte for byte, from heading to the next heading.

    The table of contents has the same headings, so the last of each counts. Raises ValueError where one is missing.
    """
    starts = {match[1].decode(): match.start() for match in HEADING.finditer(book)}
    missing = {first, last} - starts.keys()
    if missing:
        raise ValueError(f"no chapter {', '.join(sorted(missing))}; there are {', '.join(starts) or 'none'}")
    following = [start for start in starts.values() if start > starts[last]]
    return book[starts[first] : min(following, default=len(book))]


def write(path: Path, text: bytes) -> None:
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(text)
    os.replace(unfinished, path)
    print(f"{path}: {len(text):,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tuning text and the judging text.")
    parser.add_argument(
        "source", type=Path, nargs="?", default=ROOT.parent / "shared" / "corpus" / "heldout" / "dracula.txt"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "stratakv" / "assets", help="folder for both files")
    options = parser.parse_args()
    book = options.source.read_bytes()
    write(options.output / "dracula-tune.txt", chapters(book, *TUNING))
    write(options.output / "dracula-judge.txt", chapters(book, *JUDGING))


if __name__ == "__main__":
    main()
