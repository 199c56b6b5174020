"""GEMMs that can be int8: those over constant weights, grouped by the activation they read, and the two products of attention.

Each group is one decision, because GEMMs that read one tensor share its Quantize; the two products of an attention are one,
because TensorRT makes an int8 kernel of them together or not at all (q, k, v and the softmax: benchmarks/bench_int8.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ..core import Feeds
from ..graph import GEMM_OPS, Graph, module_path
from ..runtime import reference_session, with_outputs

THIN = 16  # a GEMM with fewer rows or columns of weights gains nothing from int8 kernels (reference: TensorRT, thin GEMMs)
GEMM, ATTENTION = "gemm", "attention"


@dataclasses.dataclass(frozen=True)
class Site:
    """One decision: `nodes` read `inputs` (one activation for GEMMs; q, k, softmax and v for attention)."""

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    module: str
    flops: float = 0.0
    needs: str = ""  # the site without which this one costs kernels: an int8 attention must write int8 (9 a layer, else 16)


@dataclasses.dataclass(frozen=True)
class Sites:
    """What was found, and GEMMs that INT8 cannot take with the reason. `total` are the FLOPs of all GEMMs of the graph."""

    found: tuple[Site, ...]
    refused: Mapping[str, str]
    total: float = 0.0


Groups = Mapping[ir.Value, Sequence[ir.Node]]  # the GEMMs that read a value
Products = Callable[[Graph, Groups, Mapping[str, float]], Sites]


def find_sites(graph: Graph, feeds: Feeds, products: Products | None = None) -> Sites:
    """The sites of a lowered float32 graph, in its order, with the FLOPs they take at the sizes of `feeds`.

    `products`: which products of two activations the target has an int8 kernel for.
    """
    nodes = [node for node in graph.model.graph if node.op_type in GEMM_OPS and not node.domain]
    flops = count_flops(graph, nodes, feeds)
    refused = {str(n.name): why for n in nodes if (why := _refusal(n)) is not None}
    groups: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes:
        if node.name not in refused and weight_of(node) is not None:
            groups.setdefault(node.inputs[0], []).append(node)
    made = [_gemms(value, group, flops) for value, group in groups.items()]
    if products is not None:
        found = products(graph, groups, flops)
        made, refused = [*made, *found.found], {**refused, **found.refused}
    taken = {name for site in made for name in site.nodes}
    refused |= {str(n.name): "both operands are activations" for n in nodes if n.name not in taken and n.name not in refused}
    order = {str(node.name): at for at, node in enumerate(graph.model.graph)}
    made.sort(key=lambda site: order[site.nodes[0]])
    return Sites(tuple(made), refused, sum(flops.values()))


def weight_of(node: ir.Node) -> ir.Value | None:
    """The constant weights of a MatMul or Gemm, [K,N] or, with transB, [N,K]; None where they are none."""
    if node.op_type not in ("MatMul", "Gemm") or len(node.inputs) < 2:
        return None
    weight = node.inputs[1]
    known = weight is not None and weight.const_value is not None and len(weight.const_value.shape) == 2
    return weight if known else None


def transposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))


def _refusal(node: ir.Node) -> str | None:
    weight = weight_of(node)
    if node.inputs[0] is not None and node.inputs[0].const_value is not None:
        return "a product of constants, which the compiler folds"
    if weight is None:
        return None if node.op_type == "MatMul" else f"{node.op_type} is left in float"
    if min(int(size) for size in weight.const_value.shape) < THIN:
        return f"weights of {'x'.join(map(str, weight.const_value.shape))} are too thin for an int8 kernel (at least {THIN})"
    if node.op_type == "Gemm" and (_factor(node) or node.attributes.get_int("transA", 0)):
        return "a Gemm with alpha, beta or transA"
    shape = node.inputs[0].shape
    if shape is None or len(shape) < 3 or not isinstance(shape[-1], int):
        return "it runs on one vector a sample" if shape is not None and len(shape) == 2 else "the shape of its input is unknown"
    return None


def _factor(node: ir.Node) -> bool:
    return any(node.attributes.get_float(name, 1.0) != 1 for name in ("alpha", "beta"))


def _gemms(value: ir.Value, group: list[ir.Node], flops: Mapping[str, float]) -> Site:
    names = tuple(str(node.name) for node in group)
    return Site(names[0], GEMM, names, (str(value.name),), module_path(group[0]), sum(flops[name] for name in names))


def count_flops(graph: Graph, nodes: list[ir.Node], feeds: Feeds) -> dict[str, float]:
    """2 x multiply-adds of each GEMM or convolution at the sizes of `feeds`, from the shapes of one run."""
    values = [v for node in nodes for v in (*node.inputs[:2], node.outputs[0]) if v is not None and v.const_value is None]
    fed = {spec.name for spec in graph.inputs}
    names = list(dict.fromkeys(str(v.name) for v in values if v.name not in fed))
    opened, weights = reference_session(with_outputs(graph, names))
    known = {spec.name for spec in opened.get_inputs()}
    arrays = opened.run(names, {k: v for k, v in (weights | dict(feeds)).items() if k in known})
    shapes = {name: array.shape for name, array in zip(names, arrays, strict=True)} | {n: np.shape(a) for n, a in feeds.items()}
    return {str(node.name): _flops(node, shapes) for node in nodes}


def _flops(node: ir.Node, shapes: Mapping[str, tuple[int, ...]]) -> float:
    def shape(value: ir.Value) -> tuple[int, ...]:
        return shapes[str(value.name)] if value.const_value is None else tuple(int(d) for d in value.const_value.shape)

    out = float(math.prod(shape(node.outputs[0])))
    if node.op_type in ("Conv", "ConvTranspose"):
        return 2 * out * math.prod(shape(node.inputs[1])[1:])
    if node.op_type == "Einsum" or node.op_type == "Attention":
        return 2 * out * shape(node.inputs[0])[-1]
    depth = shape(node.inputs[0])[0 if node.attributes.get_int("transA", 0) else -1]
    return 2 * out * depth
