"""Puts what must be there first (setuptools builds source packages, torch has an index of its own) into first.txt and the rest
into rest.txt: `python locked/split.py ALL`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

FIRST = ("setuptools", "torch")
HEAD = "# Written by `make lock`: Linux on x86-64, Python 3.11. Each file is held against its sha256 by `make locked`.\n"


def main(whole: Path) -> None:
    entries = re.split(r"\n(?=\S)", whole.read_text("utf-8").strip())
    parts: dict[bool, list[str]] = {True: [], False: []}
    for entry in entries:
        parts[entry.partition("==")[0] in FIRST].append(entry)
    for first, name in ((True, "first.txt"), (False, "rest.txt")):
        (Path(__file__).parent / name).write_text(HEAD + "\n".join(parts[first]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
