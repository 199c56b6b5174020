"""The command line: one file a command, found by its name. `_` hides a helper."""

from ._main import cli, main, run

__all__ = ["cli", "main", "run"]
