"""The bodies of all operators, found by file name, and which input of each is added to the scores."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

from ..core import module_names
from .builder import Body

_FILES = [importlib.import_module(f"{__package__}.bodies.{name}") for name in module_names(Path(__file__).parent / "bodies")]

BODIES: Mapping[str, Body] = {module.OP: module.body for module in _FILES}

# Operator -> which of its inputs is added to the scores.
MASK_INPUTS: Mapping[str, int] = {module.OP: module.MASK_INPUT for module in _FILES if hasattr(module, "MASK_INPUT")}
