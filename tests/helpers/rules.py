"""Rules on small ONNX texts: parse, apply one file of rules, read the result as lines, capture values of a graph."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import ShapeInferencePass

from bertc.fusions import rewrite
from bertc.graph.model import Graph

SIZES = {"B": 2, "S": 3}
BOUNDS = {"ids": 5, "types": 2, "position_ids": 4, "row": 4}


def parse(text: str) -> Graph:
    """A graph with shapes, from ONNX text."""
    model = ir.from_proto(onnx.parser.parse_model(text))
    ShapeInferencePass()(model)
    return Graph(model)


@functools.cache
def rules(name: str) -> Any:
    """The module of a rule file."""
    return importlib.import_module(f"bertc.fusions.rules.{name}")


def fuse(name: str, text: str) -> tuple[Graph, Graph, rewrite.Change]:
    """(the graph before, after, what was done)."""
    before = parse(text)
    module = rules(name)
    if hasattr(module, "apply"):
        return (before, *module.apply(before))
    return (before, *rewrite.apply_rules(before, [(name, rule) for rule in module.RULES]))


def lines(graph: Graph) -> list[str]:
    """One line a node: Op(inputs; attributes) -> outputs."""
    return [_line(node) for node in graph.model.graph]


def _line(node: ir.Node) -> str:
    given = ", ".join(f"{n}={_short(a.value)}" for n, a in sorted(node.attributes.items()))
    inputs = ", ".join("" if v is None else str(v.name) for v in node.inputs)
    return f"{node.op_type}({inputs}{'; ' if given else ''}{given}) -> {', '.join(str(v.name) for v in node.outputs)}"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def feeds(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded inputs; indices stay inside the tables of the examples."""
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for spec in graph.inputs:
        shape = [dim if isinstance(dim, int) else SIZES[dim] for dim in spec.dims]
        floats = spec.dtype.startswith("float")
        made[spec.name] = (rng.normal(size=shape) if floats else rng.integers(0, BOUNDS.get(spec.name, 2), shape)).astype(
            spec.dtype
        )
    return made


def captured(graph: Graph, names: Sequence[str], given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Values of a graph by name, by onnx's own evaluator."""
    proto = ir.to_proto(graph.model)
    known = {v.name for v in proto.graph.initializer}
    del proto.graph.output[:]
    made = [name for name in dict.fromkeys(names) if name not in given and name not in known]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in made)
    found = dict(zip(made, ReferenceEvaluator(proto).run(made, given), strict=True))
    constants = {v.name: onnx.numpy_helper.to_array(v) for v in proto.graph.initializer}
    return {**given, **constants, **found}


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """max|got - wanted| / max|wanted|; infinite for another shape."""
    return float(np.abs(got - wanted).max() / np.abs(wanted).max()) if got.shape == wanted.shape else float("inf")
