"""The run of a subgraph that makes a mask, for `mask`: by onnx's own evaluator, with the shapes that it asks for fed to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

QUERIES = 3  # the length of another sequence, which attends to this one
SAME_SHAPE = frozenset({"Cast", "Identity", "LayerNormalization", "Dropout", "Neg", "FusedSkipLayerNorm"})


class Run:
    """Evaluates a subgraph with the reference evaluator of onnx; the shapes it asks for are fed."""

    def __init__(self, value: ir.Value, nodes: list[ir.Node], foreign: list[ir.Node], source: ir.Value) -> None:
        import onnx
        from onnx.reference import ReferenceEvaluator

        helper, serde = onnx.helper, ir.serde
        inside = [node for node in nodes if node not in foreign]
        read = {v for node in inside for v in node.inputs if v is not None and v.producer() is None}
        weights = [v for v in read if v.const_value is not None and not v.is_graph_input()]
        initializers = []
        for weight in weights:
            made = onnx.numpy_helper.from_array(weight.const_value.numpy(), weight.name)
            initializers.append(made)
        assert source.dtype is not None
        shapes = [helper.make_tensor_value_info(str(n.outputs[0].name), onnx.TensorProto.INT64, [None]) for n in foreign]
        mask = helper.make_tensor_value_info(str(source.name), source.dtype.value, [None, None])
        result = helper.make_tensor_value_info(str(value.name), onnx.TensorProto.FLOAT, None)
        made = helper.make_graph([serde.serialize_node(n) for n in inside], "mask", [mask, *shapes], [result], initializers)
        assert value.graph is not None
        opsets = [helper.make_opsetid(domain, version) for domain, version in value.graph.opset_imports.items()]
        self._evaluator = ReferenceEvaluator(helper.make_model(made, opset_imports=opsets, ir_version=10))
        self._foreign, self._source = foreign, source

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        """The value for a mask [B,S] of 0 and 1."""
        assert self._source.dtype is not None
        feeds: dict[str, np.ndarray] = {str(self._source.name): mask.astype(self._source.dtype.numpy())}
        for node in self._foreign:
            dims = dims_of(node.inputs[0], self._source) or []
            own = {"B": mask.shape[0], "S": mask.shape[1]}
            sizes = [dim if isinstance(dim, int) else own.get(dim, QUERIES) for dim in dims]
            start, end = node.attributes.get("start"), node.attributes.get("end")
            picked = sizes[start.as_int() if start else 0 : end.as_int() if end else None]
            feeds[str(node.outputs[0].name)] = np.array(picked, np.int64)
        outputs: Any = self._evaluator.run(None, feeds)
        return np.asarray(outputs[0])


def dims_of(value: ir.Value | None, source: ir.Value) -> list[int | str] | None:
    """The dimensions of a value as numbers, as "B" and "S" of the mask, or as another input's; None where they are not known."""
    if value is None:
        return None
    if value.shape is not None:
        names = {_label(dim): _label(dim) for v in source.graph.inputs for dim in v.shape or ()} if source.graph else {}
        names |= {_label(dim): name for dim, name in zip(source.shape or (), "BS", strict=True)}
        named = [dim if isinstance(dim, int) else names.get(_label(dim)) if dim.value else None for dim in value.shape]
        if None not in named:
            return named
    return _dims_by_operator(value.producer(), source)


def _label(dim: Any) -> str:
    return str(dim if isinstance(dim, int) else dim.value)


def _dims_by_operator(node: ir.Node | None, source: ir.Value) -> list[int | str] | None:
    """The same for exporters that lose the names, by what a few operators do."""
    if node is None:
        return None
    if node.op_type in SAME_SHAPE:
        return dims_of(node.inputs[0], source)
    if node.op_type in ("Gather", "FusedEmbeddings"):
        axis = node.attributes.get("axis")
        index, table = (1, 0) if node.op_type == "Gather" else (0, 3)
        dims, rows = dims_of(node.inputs[index], source), node.inputs[table]
        if dims is None or rows is None or rows.shape is None or (axis is not None and axis.as_int() != 0):
            return None
        return [*dims, *dims_of(rows, source)[1:]] if dims_of(rows, source) else None
    if node.op_type in ("MatMul", "FusedLinear"):
        dims, weight = dims_of(node.inputs[0], source), node.inputs[1]
        constant = None if weight is None else weight.const_value
        if dims is None or constant is None or len(constant.shape) != 2:
            return None
        return [*dims[:-1], int(constant.shape[1])]
    if node.op_type in ("Add", "Mul", "Sub"):
        # One term spans batch and length; another may be spread over them and tell less.
        known = [dims for v in node.inputs if (dims := dims_of(v, source)) is not None and {"B", "S"} <= set(dims)]
        return known[0] if known else None
    return None
