"""null: lowers nothing, builds nothing, runs the reference. For exports, tests and dry runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core import machine as packages
from ..core import profiles_from_json
from ..graph import Graph
from ..runtime import ReferenceRunner, Runner
from ..source import describe_quantised, runner_of
from ._model_file import read_model
from ._protocol import Availability, BuildRequest, Built

FUSES = False
SMS: tuple[str, ...] = ()
DEFAULT_SMS: tuple[str, ...] = ()
INT8_BASE, INT8_ATTENTION = "fp32", None


def available() -> Availability:
    """Building needs nothing; running needs ONNX Runtime."""
    run = packages.onnxruntime_version()
    return Availability(
        True, run is not None, "" if run else "onnxruntime is not installed", run or "", "pip install 'bertc[cpu]'"
    )


def lower(graph: Graph, sms: tuple[str, ...] = (), *, quantised: bool = False) -> Graph:
    """The same graph."""
    return graph


def build(request: BuildRequest) -> Built:
    """Nothing: graph.onnx is the artifact."""
    return Built(files={})


def load(directory: Path, manifest: Mapping[str, Any]) -> Runner:
    """The reference runner, with emulated fp16 and bf16 rounding."""
    from ..artifact import GRAPH
    from ..graph import graph_of_bytes, load_graph

    read = read_model(directory, manifest, GRAPH)
    graph = load_graph(read.path) if read.data is None else graph_of_bytes(read.data, read.path, read.beside)
    if manifest["precision"]["mode"] == "fp32" and describe_quantised(graph):  # its source was: not what bertc quantised
        return runner_of(graph)
    return ReferenceRunner(graph, profiles_from_json(manifest["profiles"]))
