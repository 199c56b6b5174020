"""Tile of a type that its CUDA kernels do not take, as a mask of booleans is: written so that they do. Every step is exact."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...ops import Builder
from .kernels import why_no_kernel


def untiled(node: ir.Node, opset: int) -> bool:
    """Whether a node is a Tile without a kernel."""
    return node.op_type == "Tile" and not node.domain and why_no_kernel(node, opset) is not None


def rewrite_tiles(model: ir.Model) -> None:
    """Expand where only axes of size 1 are repeated, else Tile of the same in int32."""
    opset = model.opset_imports[""]
    for node in [node for node in model.graph.all_nodes() if untiled(node, opset)]:
        x, repeats = node.inputs
        if x is None or x.dtype is None or not (x.dtype.is_integer() or x.dtype == ir.DataType.BOOL):
            continue  # the check of the kernels names it
        op = Builder()
        if _spreads(x, repeats):
            made = op.Expand(x, repeats)
        else:
            wide = ir.DataType.INT64 if x.dtype in (ir.DataType.UINT32, ir.DataType.UINT64) else ir.DataType.INT32
            counted = op.Cast(x, to=wide)
            tiled = op.Tile(counted, repeats)
            made = op.Cast(tiled, to=x.dtype)
            counted.type = tiled.type = ir.TensorType(wide)
            counted.shape, tiled.shape = x.shape, node.outputs[0].shape
        _put(node, op, made)


def _spreads(x: ir.Value, repeats: ir.Value | None) -> bool:
    """Whether every axis that is repeated has the size 1."""
    tensor = ir.convenience.get_const_tensor(repeats) if repeats is not None else None
    if tensor is None or x.shape is None:
        return False
    counts = np.atleast_1d(tensor.numpy())
    return all(count == 1 or (count > 1 and dim == 1) for count, dim in zip(counts, x.shape.dims, strict=True))


def _put(node: ir.Node, op: Builder, made: ir.Value) -> None:
    out = node.outputs[0]
    for index, new in enumerate(op.nodes):
        new.name, new.outputs[0].name = f"{node.name}/{new.op_type}_{index}", f"{out.name}/{new.op_type}_{index}"
        new.metadata_props.update(node.metadata_props)
    assert node.graph is not None
    made.type, made.shape = out.type, out.shape
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], op.nodes, [out], [made])
