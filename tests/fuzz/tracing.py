"""Exports of one tiny model again and again: tracing it takes seconds, and is the same as long as the module is.

Where the changed file decides what is traced, the export ends as refused once the module stands, weights and all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import kinds
import onnx
import onnx_ir as ir

from bertc.core import SourceError
from bertc.graph import Graph

TRACED: dict[str, tuple[onnx.ModelProto, Any]] = {}


@contextlib.contextmanager
def traced_once(kind: kinds.Kind, file: Path) -> Iterator[None]:
    """Stand in for the tracing of a kind of a checkpoint's file; nothing else is changed, and nothing of other kinds."""
    if not kind.exported:
        yield
        return
    from bertc.source import torch_export

    real = torch_export.export_module

    def export(made: Any, opset: int) -> tuple[Graph, Any]:
        if kind.exported == "module":
            raise SourceError(f"{file}: read, and not traced again")
        if kind.name not in TRACED:
            graph, outputs = real(made, opset)
            TRACED[kind.name] = ir.to_proto(graph.model), outputs
        proto, outputs = TRACED[kind.name]
        return Graph(ir.from_proto(proto)), outputs

    with mock.patch.object(torch_export, "export_module", export):
        yield
