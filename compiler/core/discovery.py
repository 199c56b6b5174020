"""What is found by its file name: targets, precision modes, operators, commands. A leading underscore hides a helper."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def module_names(folder: Path) -> tuple[str, ...]:
    """The names of the modules in a package's folder, sorted."""
    return tuple(sorted(found.name for found in pkgutil.iter_modules([str(folder)]) if not found.name.startswith("_")))
