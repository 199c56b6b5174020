"""Replace com.microsoft operators of a model by their bodies, and say which have none."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from ..core import InputError, module_names
from ..graph import OPSET
from ..ops import Body, Builder, replace_node, taken_names
from .contrib._pieces import NeedsRank

DOMAIN = "com.microsoft"
_FOLDER = Path(__file__).parent / "contrib"
_FILES = [importlib.import_module(f"{__package__}.contrib.{name}") for name in module_names(_FOLDER)]
BODIES: Mapping[str, Body] = {name: body for module in _FILES for name, body in getattr(module, "BODIES", {}).items()}
STORES = frozenset(importlib.import_module(f"{__package__}.contrib.weights").BODIES)  # weights in few bits
# Written without a domain, as if they were of the standard: LayerNormalization before opset 17 was ONNX Runtime's own.
UNDER_NO_DOMAIN = {"LayerNormalization": 17, "SimplifiedLayerNormalization": OPSET + 100}


def claim_own(model: ir.Model) -> None:
    """Give ONNX Runtime's operators that stand without a domain their domain, or nothing takes the file for valid ONNX."""
    opset = model.opset_imports.get("", 0)
    for node in model.graph.all_nodes():
        if node.domain in ("", "ai.onnx") and opset < UNDER_NO_DOMAIN.get(node.op_type, 0):
            node.domain = DOMAIN
            model.opset_imports.setdefault(DOMAIN, 1)


def has_contrib(model: ir.Model) -> bool:
    """Whether a model has operators that may be expanded."""
    return any(node.domain == DOMAIN and node.op_type in BODIES for node in model.graph.all_nodes())


def why_kept(model: ir.Model) -> list[str]:
    """Why operators of com.microsoft are in a graph still, a sentence each."""
    found = [node for node in model.graph.all_nodes() if node.domain == DOMAIN]
    return [why for node in found if (why := _why_not(node))]


def _why_not(node: ir.Node) -> str:
    if node.op_type not in BODIES:
        return f"{node.op_type} {node.name!r}: no expansion of this operator"
    try:
        BODIES[node.op_type](Builder(), node)
    except InputError as why:
        return f"{node.op_type} {node.name!r}: {why}"
    return ""


def expand_contrib(model: ir.Model) -> tuple[list[str], list[str]]:
    """Expand what has a body, in place, at opset 20 or newer. Returns the operators that were, and why others were not.

    In the order of the graph: what feeds a node is standard ONNX by then, so that its rank can be inferred.
    """
    done, refused, taken = [], list[str](), taken_names(model)
    for node in [n for n in model.graph.all_nodes() if n.domain == DOMAIN]:
        why = _expand_node(model, node, taken)
        if why:
            refused.append(why)
        else:
            done.append(node.op_type)
    RemoveUnusedNodesPass()(model)
    if not any(node.domain == DOMAIN for node in model.graph.all_nodes()):
        model.opset_imports.pop(DOMAIN, None)
    if done:
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    return done, refused


def _expand_node(model: ir.Model, node: ir.Node, taken: set[str | None]) -> str:
    if node.op_type not in BODIES:
        return f"{node.op_type} {node.name!r}: no expansion of this operator"
    for last in (False, True):
        try:
            replace_node(model, node, _for_used_outputs(BODIES[node.op_type]), taken)
            return ""
        except NeedsRank as why:
            if last:
                return f"{node.op_type} {node.name!r}: {why}"
            ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
        except InputError as why:
            return f"{node.op_type} {node.name!r}: {why}"
    return ""


def _for_used_outputs(body: Body) -> Body:
    """A body may leave out outputs, by None or at the end, that nobody reads."""

    def made(op: ir.tape.Tape, node: ir.Node) -> list[ir.Value]:
        results: list[ir.Value | None] = []
        results += list(body(op, node))[: len(node.outputs)]
        results += [None] * (len(node.outputs) - len(results))
        return list(_filled(op, node, results))

    return made


def _filled(op: ir.tape.Tape, node: ir.Node, results: list[ir.Value | None]) -> Iterator[ir.Value]:
    for index, (value, result) in enumerate(zip(node.outputs, results, strict=True)):
        if result is None and (value.uses() or value.is_graph_output()):
            raise InputError(f"its output {index} ({value.name}) is read, and has no expansion")
        yield result if result is not None else op.Identity(results[0])  # type: ignore[attr-defined]
