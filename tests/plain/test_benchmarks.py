"""Every table of benchmarks/README.md comes from a command that exists, and every benchmark still imports what it uses."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"
README = (FOLDER / "README.md").read_text("utf-8")


def test_the_commands_exist() -> None:
    commands = re.findall(r"`python -m benchmarks ([\w ]+)`", README)
    assert len(commands) >= 10
    for name in {word for command in commands for word in command.split()}:
        assert (FOLDER / f"bench_{name.removeprefix('bench_')}.py").is_file(), name


def test_they_import() -> None:
    names = [path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "__main__")]
    assert len(names) > 20
    for name in names:
        importlib.import_module(f"benchmarks.{name}")


def test_the_passes_that_are_timed_are_there() -> None:
    """A function that moved would end the benchmark after minutes."""
    from benchmarks.pass_times import FUNCTIONS

    gone = [
        f"{module}.{n}" for module, names in FUNCTIONS.items() for n in names if not hasattr(importlib.import_module(module), n)
    ]
    assert FUNCTIONS and not gone
