"""The precision modes, found by file name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from ..core import RecipeError, did_you_mean, module_names

if TYPE_CHECKING:
    from ..graph import Graph
    from ._kernels import Kernels
    from ._plan import Typed
    from ._value_ranges import Evidence


class Precision(Protocol):
    """The shape of a precision module."""

    def apply(self, graph: Graph, evidence: Evidence | None = None, kernels: Kernels | None = None) -> Typed: ...


CALIBRATED = frozenset({"int8", "int8-static", "fp8"})  # modes whose scales come from data

QUANTISED = CALIBRATED | {"int8-dynamic", "int8-weights"}  # modes whose graph is quantised before it is typed


def names() -> tuple[str, ...]:
    """All precision modes, by file name: `int8-dynamic` is int8_dynamic.py."""
    return tuple(name.replace("_", "-") for name in module_names(Path(__file__).parent))


def get(name: str) -> Precision:
    """The precision module of that name; RecipeError lists the known ones."""
    if name not in names():
        raise RecipeError(f"unknown precision {name!r}{did_you_mean(name, names())}")
    return cast(Precision, importlib.import_module(f".{name.replace('-', '_')}", __package__))
