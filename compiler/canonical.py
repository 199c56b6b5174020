"""The canonical body of every `bertc` operator, in standard ONNX (opset 20): what an operator means, written once.

The operators' shapes stand in `fusions/__init__.py`; `plugins/<op>.py` says the same in numpy, written apart from this, and a
test holds the two together. A body is a function (op, node) -> outputs: `op` is a `Builder`, `node` the operator's
node, whose inputs and attributes may be read; as many outputs are made as the node has. A target's lowering has the same form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass
from onnx_ir.tape import Tape

from .errors import CheckFailed, InputError, nearest
from .graph import DOMAIN, Graph

Body = Callable[[Any, ir.Node], Sequence[ir.Value]]
Input = ir.Value | None

OPSET = 20  # Gelu is of opset 20, Split with num_outputs and ReduceMean with an axes input of 18
EPSILON = 1e-5


class Builder(Tape):
    """`op.Split(x, axis=2, num_outputs=3, _outputs=3)`: makes a node and gives its output, or a sequence of `_outputs`."""

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)  # no operator: copy and pickle ask for many names

        def make(*inputs: Input, _domain: str = "", _outputs: int = 1, **attributes: Any) -> Any:
            made = self.op_multi_out(op_type, inputs, attributes, num_outputs=_outputs, domain=_domain)
            return made[0] if _outputs == 1 else made

        return make


class Speller(Builder):
    """Spells out Gelu: inside a function, where types are not known, the ONNX reference evaluator cannot run the operator."""

    def Gelu(self, x: ir.Value, approximate: str) -> ir.Value:
        half = self.Mul(x, _constant(self, 0.5))
        if approximate == "tanh":
            cubic = self.Mul(_constant(self, 0.044715), self.Mul(x, self.Mul(x, x)))
            inner = self.Tanh(self.Mul(self.Add(x, cubic), _constant(self, math.sqrt(2 / math.pi))))
        else:
            inner = self.Erf(self.Mul(x, _constant(self, math.sqrt(0.5))))
        return self.Mul(half, self.Add(inner, _constant(self, 1.0)))


def _inputs(node: ir.Node, count: int) -> list[Any]:
    """The node's inputs, None where one is absent; trailing ones may be left out."""
    return [*node.inputs, *[None] * (count - len(node.inputs))]


def _constant(op: Any, value: Any, dtype: type = np.float32) -> ir.Value:
    return op.Constant(value=ir.tensor(np.asarray(value, dtype)))


def _sum(op: Any, *terms: Input) -> ir.Value:
    total, *rest = [term for term in terms if term is not None]
    for term in rest:
        total = op.Add(total, term)
    return total


def _gelu(op: Any, x: ir.Value, form: str) -> ir.Value:
    if form == "quick":
        return op.Mul(x, op.Sigmoid(op.Mul(x, _constant(op, 1.702))))
    known = {"erf": "none", "tanh": "tanh"}
    if form not in known:
        raise InputError(f"an unknown form of GELU {form!r}{nearest(form, [*known, 'quick'])}")
    return op.Gelu(x, approximate=known[form])


def _norm(op: Any, x: ir.Value, gamma: ir.Value, beta: Input, epsilon: float) -> ir.Value:
    given = [x, gamma] if beta is None else [x, gamma, beta]
    return op.LayerNormalization(*given, axis=-1, epsilon=epsilon)


def linear(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedLinear: x @ W + b."""
    x, w, b = _inputs(node, 3)
    return [_sum(op, op.MatMul(x, w), b)]


def bias_gelu(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedBiasGelu: gelu(x + b)."""
    x, b = _inputs(node, 2)
    return [_gelu(op, op.Add(x, b), node.attributes.get_string("form", "erf"))]


def gelu(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedGelu: gelu(x), for the forms and the opsets that have no Gelu of their own."""
    return [_gelu(op, node.inputs[0], node.attributes.get_string("form", "erf"))]  # type: ignore[arg-type]


def skip_layernorm(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedSkipLayerNorm: the sum x + b + skip, normalised, and the sum itself where it is asked for."""
    x, skip, b, gamma, beta = _inputs(node, 5)
    total = _sum(op, x, b, skip)
    return [_norm(op, total, gamma, beta, node.attributes.get_float("epsilon", EPSILON)), total][: len(node.outputs)]


def skip_rmsnorm(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedSkipRmsNorm: RMSNormalization is of opset 23, so it is spelled out."""
    x, skip, b, gamma = _inputs(node, 4)
    total = _sum(op, x, b, skip)
    mean = op.ReduceMean(op.Mul(total, total), _constant(op, [-1], np.int64), keepdims=1)
    root = op.Sqrt(op.Add(mean, _constant(op, node.attributes.get_float("epsilon", EPSILON))))
    return [op.Mul(op.Div(total, root), gamma), total][: len(node.outputs)]


def embeddings(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedEmbeddings: a position table without positions counts from 0, a type table without types is read at row 0."""
    ids, positions, types, word, position, type_, gamma, beta = _inputs(node, 8)
    terms = [op.Gather(word, ids)]
    if position is not None and positions is not None:
        terms.append(op.Gather(position, positions))
    elif position is not None:
        zero, one = _constant(op, [0], np.int64), _constant(op, [1], np.int64)
        terms.append(op.Slice(position, zero, op.Shape(ids, start=1, end=2), zero, one))
    if type_ is not None:
        terms.append(op.Gather(type_, types if types is not None else _constant(op, 0, np.int64)))
    return [_norm(op, _sum(op, *terms), gamma, beta, node.attributes.get_float("epsilon", EPSILON))]


def score_mask(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedScoreMask: chosen, not computed: (1 - mask) * low makes -inf * 0 of a low that is not finite."""
    mask = node.inputs[0]
    low = node.attributes.get_float("low")
    if low is None or not np.isfinite(low):
        raise InputError(f"FusedScoreMask {node.name!r} has low {low}; it takes a finite number, or a row with no place is NaN")
    seen = op.Unsqueeze(op.Cast(mask, to=ir.DataType.BOOL), _constant(op, [1, 2], np.int64))
    return [op.Where(seen, _constant(op, 0.0), _constant(op, low))]


def _attend(op: Any, q: ir.Value, k_t: ir.Value, v: ir.Value, mask: Input, scale: float) -> ir.Value:
    scaled = q if scale == 1 else op.Mul(q, _constant(op, scale))  # q is smaller than the scores
    scores = _sum(op, op.MatMul(scaled, k_t), mask)
    return op.MatMul(op.Softmax(scores, axis=-1), v)


def sdpa(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedSdpa: softmax(q k_t * scale + mask) v."""
    q, k_t, v, mask = _inputs(node, 4)
    return [_attend(op, q, k_t, v, mask, node.attributes.get_float("scale", 1.0))]


def attention(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedAttention: one projection to 3h heads, cut in three, which TensorRT makes one kernel of (8 a layer)."""
    x, mask, wqkv, bqkv, wo, bo = _inputs(node, 6)
    heads = node.attributes.get_int("num_heads")
    if not heads:
        raise InputError(f"FusedAttention {node.name!r} has no attribute num_heads")
    packed = op.Reshape(_sum(op, op.MatMul(x, wqkv), bqkv), _constant(op, [0, 0, 3 * heads, -1], np.int64))
    q, k, v = op.Split(packed, axis=2, num_outputs=3, _outputs=3)
    q, k_t, v = (op.Transpose(t, perm=perm) for t, perm in ((q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3])))
    context = op.Transpose(_attend(op, q, k_t, v, mask, node.attributes.get_float("scale", 1.0)), perm=[0, 2, 1, 3])
    merged = op.Reshape(context, _constant(op, [0, 0, -1], np.int64))
    return [_sum(op, op.MatMul(merged, wo), bo)]


def conv1d_gelu(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedConv1dGelu: norm "group" has one group a channel, which is an instance norm; "layer" normalises over channels."""
    x, w, b, gamma, beta = _inputs(node, 5)
    get = node.attributes
    made = op.Conv(
        *([x, w] if b is None else [x, w, b]),
        strides=list(get.get_ints("strides", [1])),
        pads=list(get.get_ints("pads", [0, 0])),
        dilations=list(get.get_ints("dilations", [1])),
        group=get.get_int("group", 1),
    )
    norm, epsilon = get.get_string("norm", "none"), get.get_float("epsilon", EPSILON)
    if norm == "group":
        made = op.InstanceNormalization(made, gamma, beta if beta is not None else op.Sub(gamma, gamma), epsilon=epsilon)
    elif norm == "layer":
        made = op.Transpose(_norm(op, op.Transpose(made, perm=[0, 2, 1]), gamma, beta, epsilon), perm=[0, 2, 1])
    elif norm != "none":
        raise InputError(f"FusedConv1dGelu {node.name!r} has norm {norm!r}{nearest(norm, ['none', 'group', 'layer'])}")
    return [_gelu(op, made, get.get_string("form", "erf"))]


BODIES: Mapping[str, Body] = {
    "FusedGelu": gelu,
    "FusedLinear": linear,
    "FusedBiasGelu": bias_gelu,
    "FusedSkipLayerNorm": skip_layernorm,
    "FusedSkipRmsNorm": skip_rmsnorm,
    "FusedEmbeddings": embeddings,
    "FusedScoreMask": score_mask,
    "FusedSdpa": sdpa,
    "FusedAttention": attention,
    "FusedConv1dGelu": conv1d_gelu,
}


def expand(graph: Graph, lowerings: Mapping[str, Body] = {}) -> Graph:
    """A copy with every `bertc` node replaced by its lowering from the table, else by its canonical body.

    New nodes and values are named after the node and the output they come from, and carry the node's metadata. Outputs keep their
    type and shape; the other new values get theirs from ONNX's shape inference (values of foreign operators have none unless the
    lowering sets them). Raises InputError for an opset below 20 or an operator that nobody defines.
    """
    if graph.opset < OPSET:
        raise InputError(f"the graph is of opset {graph.opset}; bertc operators expand to opset {OPSET}: convert it first")
    copy = graph.copy()
    known = {value.name: (value.type, value.shape) for node in copy.model.graph.all_nodes() for value in node.outputs}
    inline(copy.model, lowerings)
    _infer(copy.model, known)
    return copy


def inline(model: ir.Model, lowerings: Mapping[str, Body] = {}) -> None:
    """What `expand` does, in place and without shape inference."""
    nodes = [node for node in model.graph.all_nodes() if node.domain == DOMAIN and node.op_identifier() not in model.functions]
    taken = {node.name for node in model.graph.all_nodes()} | set(model.graph.initializers)
    taken |= {value.name for node in model.graph.all_nodes() for value in node.outputs}
    for node in nodes:
        _replace(model, node, lowerings.get(node.op_type) or _body(node), taken)
    model.opset_imports.pop(DOMAIN, None)
    if any(function.domain == DOMAIN for function in model.functions.values()):
        model.opset_imports[DOMAIN] = 1


def _body(node: ir.Node) -> Body:
    if node.op_type not in BODIES:
        raise InputError(f"node {node.name!r} is of the unknown operator bertc.{node.op_type}{nearest(node.op_type, BODIES)}")
    return BODIES[node.op_type]


def _replace(model: ir.Model, node: ir.Node, body: Body, taken: set[str | None]) -> None:
    op = Builder()
    made = list(body(op, node))
    if len(made) != len(node.outputs) or any(value.producer() not in op.nodes for value in made):
        found = f"it gave {len(made)}, of {len(op.nodes)} new nodes"
        raise CheckFailed(f"{body} of bertc.{node.op_type} must make {len(node.outputs)} outputs of its own; {found}")
    for value in op.initializers:
        value.name = _free(f"{node.name}/{value.name}", taken)
        model.graph.register_initializer(value)
    for new in op.nodes:
        new.name = _free(f"{node.name}/{new.op_type}", taken)
        new.metadata_props.update(node.metadata_props)
        for value in new.outputs:
            value.name = _free(f"{node.outputs[0].name}/{new.op_type}", taken)
        if new.domain:
            model.opset_imports.setdefault(new.domain, 1)
    assert node.graph is not None
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], op.nodes, node.outputs, made)


def _free(name: str, taken: set[str | None]) -> str:
    """The name, with the smallest number behind it that makes it new."""
    found, count = name, 0
    while found in taken:
        count += 1
        found = f"{name}_{count}"
    taken.add(found)
    return found


def _infer(model: ir.Model, known: Mapping[str | None, tuple[Any, Any]]) -> None:
    """Types and shapes of new values; what was known stays as it was, named dimensions too."""
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.name in known:
                kind, shape = known[value.name]
                value.type, value.shape = kind or value.type, shape if shape is not None else value.shape


def as_functions(graph: Graph) -> Graph:
    """The fused graph as a valid ONNX model: one local function per operator, so that it runs on any ONNX runtime.

    Where a model uses an operator in several variants (attributes, absent inputs, outputs), the second function is named
    `FusedLinear_v2` and so on. Not by `overload`: the ONNX reference evaluator and TensorRT's parser look functions up by name
    alone, and would silently give every node the last variant. Weights are shared, and stay in the main graph.
    """
    if graph.opset < OPSET:
        raise InputError(f"the graph is of opset {graph.opset}; bertc operators expand to opset {OPSET}: convert it first")
    copy = graph.copy()
    given = set(copy.model.functions)  # a file that was fused before brings its own
    names: dict[Any, str] = {}
    variants: dict[str, int] = {}
    for node in list(copy.model.graph.all_nodes()):
        if node.domain != DOMAIN or node.op_identifier() in given:
            continue
        key = _variant(node)
        if key not in names:
            variants[node.op_type] = count = variants.get(node.op_type, 0) + 1
            names[key] = node.op_type if count == 1 else f"{node.op_type}_v{count}"
            function = _function(node, names[key])
            copy.model.functions[function.identifier()] = function
        node.op_type = names[key]
    if names:
        copy.model.opset_imports[DOMAIN] = 1
    return copy


def _variant(node: ir.Node) -> Any:
    """What a body may depend on."""
    attributes = tuple(sorted((name, repr(attribute.value)) for name, attribute in node.attributes.items()))
    return node.op_type, attributes, tuple(value is not None for value in node.inputs), len(node.outputs)


def _function(node: ir.Node, name: str) -> ir.Function:
    """The body over formal inputs. Attributes are in the body already; declared, the calling node may keep them to be read."""
    formal = [ir.Value(name=f"x{i}") for i in range(len(node.inputs))]
    given = [value if actual is not None else None for value, actual in zip(formal, node.inputs, strict=True)]
    stand_in = ir.Node(DOMAIN, node.op_type, given, list(node.attributes.values()), num_outputs=len(node.outputs), name=name)
    op = Speller()
    made = _body(node)(op, stand_in)
    for index in range(len(given)):
        stand_in.replace_input_with(index, None)  # it is no node of the body
    for index, value in enumerate(v for new in op.nodes for v in new.outputs):
        value.name = f"v{index}"
    body = ir.Graph(formal, list(made), nodes=op.nodes, opset_imports={"": OPSET}, name=name)
    declared = [ir.Attr(key, attribute.type, None) for key, attribute in node.attributes.items()]
    return ir.Function(DOMAIN, name, graph=body, attributes=declared)
