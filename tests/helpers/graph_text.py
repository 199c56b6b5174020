"""Graphs written as ONNX text."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from bertc.graph.model import Graph

ATTENTION = """<ir_version: 10, opset_import: ["" : 20]>
attention (float[B,S,8] x, int64[B,S] mask) => (float[B,S,8] y)
<float[8,8] wq, float[8,8] wk, float[8,8] wv, float scale = {0.35}, float low = {-3.4028234663852886e+38},
 float zero = {0.0}, int64[1] axes = {1}, float[8] gamma, float[8] beta>
{
   q = MatMul (x, wq)
   k = MatMul (x, wk)
   v = MatMul (x, wv)
   kt = Transpose <perm = [0, 2, 1]> (k)
   scores = MatMul (q, kt)
   scaled = Mul (scores, scale)
   keep = Cast <to = 9> (mask)
   keep1 = Unsqueeze (keep, axes)
   bias = Where (keep1, zero, low)
   masked = Add (scaled, bias)
   p = Softmax <axis = -1> (masked)
   context = MatMul (p, v)
   sum = Add (context, x)
   y = LayerNormalization <axis = -1, epsilon = 1e-12> (sum, gamma, beta)
}"""


def graph_of(text: str, seed: int = 0, **weights: np.ndarray) -> Graph:
    """ONNX text as a graph. Declared values that nothing computes are weights: given ones, or seeded random ones."""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    made = {name for n in proto.graph.node for name in n.output}
    for info in [v for v in proto.graph.value_info if v.name not in made]:
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
        array = weights.get(info.name, rng.standard_normal(shape).astype(np.float32))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
        proto.graph.value_info.remove(info)
    proto = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    model = ir.from_proto(proto)
    for number, each in enumerate(model.graph):
        each.name = each.name or f"{each.op_type}_{number}"
    return Graph(model)


def valid(graph: Graph) -> None:
    onnx.checker.check_model(ir.to_proto(graph.model), full_check=True)


def node(graph: Graph, output: str) -> ir.Node:
    return next(n for n in graph.model.graph if any(str(v.name).split(".")[0] == output for v in n.outputs))
