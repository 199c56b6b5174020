"""Whole systems around distilled encoders: trained on data that packages bring, built by bertc, judged by their own metric.

python -m bertc.recipes.systems text-qa -o out/text-qa

Each folder is one system: data.py (reads it), modules.py (torch), training.py, judging.py (the metric, over built artifacts) and
system.toml (targets, precisions, profiles). Its `SYSTEM` says how it is trained and judged; torch is imported when it is called.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from bertc.core import InputError, did_you_mean

if TYPE_CHECKING:
    from .running import System

__all__ = ["names", "system"]


def names() -> tuple[str, ...]:
    """The systems that ship with bertc."""
    return tuple(sorted(path.parent.name.replace("_", "-") for path in Path(__file__).parent.glob("*/system.toml")))


def system(name: str) -> System:
    """A system by its name. InputError for a name that none has."""
    if name not in names():
        raise InputError(f"no system is called {name!r}{did_you_mean(name, names())}")
    found: System = importlib.import_module(f"{__package__}.{name.replace('-', '_')}").SYSTEM
    return found
