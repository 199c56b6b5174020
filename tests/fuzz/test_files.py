"""Every file of JSON and TOML that bertc reads, changed: the rule of `rule.py` holds whatever stands in it.

A few seconds with a fixed seed in CI; by hand as long as one likes: FUZZ_SECONDS=600 FUZZ_KINDS=lock,ranges pytest
tests/fuzz/test_files.py.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from pathlib import Path

import kinds
import mutating
import pytest
import rule
import tracing

SECONDS = float(os.environ.get("FUZZ_SECONDS", 0))
FIRST = int(os.environ.get("FUZZ_SEED", 1))
EXAMPLES = 12
TRACED = 12  # of the files that decide what is traced every so many'th is traced: seconds each
NAMES = tuple(os.environ["FUZZ_KINDS"].split(",") if "FUZZ_KINDS" in os.environ else kinds.KINDS)


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_file_ends_as_documented(name: str, tmp_path: Path) -> None:
    kind, root, out = kinds.KINDS[name], tmp_path / "root", tmp_path / "out" / "made.html"
    ends = time.monotonic() + SECONDS / len(NAMES)
    at = 0
    while at < EXAMPLES or time.monotonic() < ends:
        rng = random.Random(f"{FIRST} {name} {at}")
        file = kind.copied(root)
        text, what = mutating.mutated(file.read_bytes(), kind.format, rng)
        file.write_bytes(text)
        kind.rehash(root)
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()
        quick = contextlib.nullcontext() if at % TRACED == TRACED - 1 else tracing.traced_once(kind, file)
        try:
            with quick:
                rule.obey(kind.arguments(kind.commands[at % len(kind.commands)], root, out), file, out)
        except AssertionError as error:
            raise AssertionError(f"{name}, number {at} of seed {FIRST} ({what}): {error}") from error
        at += 1
