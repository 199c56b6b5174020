"""Precision modes: one file each, found by its name. Each has `apply(graph, evidence) -> Typed`, a function from graph to graph.

Precision is written into the graph, no flag of a builder: TensorRT 11 takes nothing else, and it makes the
numerics of an engine testable on a CPU.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
