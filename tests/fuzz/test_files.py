"""Every file of JSON and TOML that bertc reads, changed: the rule of `rule.py` holds whatever stands in it.

A few seconds with a fixed seed in CI; by hand as long as one likes: FUZZ_SECONDS=600 pytest tests/fuzz/test_files.py.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import kinds
import mutating
import pytest
import rule

SECONDS = float(os.environ.get("FUZZ_SECONDS", 0))
FIRST = int(os.environ.get("FUZZ_SEED", 1))
EXAMPLES = 12
# Held against the rule in CI; the others are in `kinds` and are run by hand, until they keep it: FUZZ_KINDS=lock,ranges.
NAMES = tuple(os.environ.get("FUZZ_KINDS", "manifest,report,verdict,recipe,serving,requests,texts").split(","))


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
        try:
            rule.obey(kind.arguments(kind.commands[at % len(kind.commands)], root, out), file, out)
        except AssertionError as error:
            raise AssertionError(f"{name}, number {at} of seed {FIRST} ({what}): {error}") from error
        at += 1
