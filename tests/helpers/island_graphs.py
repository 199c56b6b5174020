"""Graphs with values that float16 cannot hold, and the islands that are found in them."""

from __future__ import annotations

import numpy as np
from graph_text import graph_of

from bertc import precision
from bertc.data.samples import Sample
from bertc.graph.model import Graph
from bertc.precision._value_ranges import Evidence


def graph(
    body: str, inputs: str = "float[B,4] x", output: str = "float[B,4] y", declared: str = "", **weights: np.ndarray
) -> Graph:
    head = f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => ({output})'
    return graph_of(f"{head} {f'<{declared}>' if declared else ''} {{ {body} }}", **weights)


def evidence(*feeds: dict[str, np.ndarray]) -> Evidence:
    return Evidence([Sample(f"sample {at}", each) for at, each in enumerate(feeds)], f"{len(feeds)} samples")


def row(*numbers: float) -> dict[str, np.ndarray]:
    return {"x": np.array([numbers], np.float32)}


def islands(typed: precision.Typed, by: str = "data") -> dict[str, str]:
    return {island.op: island.reason for island in typed.plan.islands if island.by == by}
