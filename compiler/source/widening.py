"""A graph that is float16 or bfloat16 inside, as float32: every half number is one of float32, so nothing is rounded.

What the source rounded between its nodes is not rounded any more: the graph is what its author had before it was converted. Which
values become half again is decided when an artifact is typed, as for any float32 graph. Numbers keep their meaning (see
`half_constants.py`). A Cast to half becomes one to float32, inputs and outputs of the interface become float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import common

from ..runtime import EXACT, FLOAT, HALVES
from .half_constants import restored

NAMES = {ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}
# Attributes that name a type: of what a node makes, or of what it computes in.
TYPES = ("to", "dtype", "output_dtype", "stash_type", "softmax_precision", "output_datatype")
# A result of another type, or a choice among values: no number of half is rounded.
HARMLESS = EXACT | {
    "Cast",
    "CastLike",
    "Shape",
    "Size",
    "Equal",
    "Greater",
    "Less",
    "GreaterOrEqual",
    "LessOrEqual",
    "IsNaN",
    "IsInf",
}
NOT_HALF = frozenset(
    "Shape Size Equal Greater Less GreaterOrEqual LessOrEqual IsNaN IsInf And Or Not ArgMax ArgMin NonZero".split()
)


@dataclasses.dataclass(frozen=True)
class HalfParts:
    """What of a graph is half: numbers stored, inputs and outputs, and the type that nodes compute in (None: stored alone)."""

    stored: int = 0
    stored_bytes: int = 0
    ports: tuple[str, ...] = ()
    stored_in: ir.DataType | None = None
    computed_in: ir.DataType | None = None

    def __bool__(self) -> bool:
        return bool(self.stored or self.ports or self.computed_in)


def find_half(model: ir.Model) -> HalfParts:
    """What of a model is half. Types that the file does not give are followed through the graph; no shape inference is needed."""
    graph = model.graph
    weights = [v.const_value for v in graph.initializers.values() if v.const_value is not None and v.const_value.dtype in HALVES]
    ports = tuple(str(v.name) for v in (*graph.inputs, *graph.outputs) if v.dtype in HALVES)
    found = set(_computing(model))
    return HalfParts(
        len(weights),
        sum(tensor.nbytes for tensor in weights),
        ports,
        weights[0].dtype if weights else None,
        min(found, key=int, default=None) or next((v.dtype for v in (*graph.inputs, *graph.outputs) if v.dtype in HALVES), None),
    )


def _computing(model: ir.Model) -> Iterator[ir.DataType]:
    """The half types that results, not constants, are rounded to."""
    half: dict[ir.Value, ir.DataType] = {}
    constant: set[ir.Value] = set()
    for graph in model.graphs():
        constant |= {value for value in graph.initializers.values() if not value.is_graph_input()}
        half |= {v: v.dtype for v in (*graph.inputs, *graph.initializers.values()) if v.dtype in HALVES}
    for node in model.graph.all_nodes():
        read = [half[value] for value in node.inputs if value in half]
        fixed = all(value is None or value in constant for value in node.inputs) and not _graphs_of(node)
        if fixed:
            constant |= set(node.outputs)
        made = _type_made(node, read)
        rounds = made in HALVES and node.op_type in ("Cast", "CastLike") and not read
        if not fixed and (rounds or (read and node.op_type not in HARMLESS)):
            yield made if made in HALVES else read[0]
        if made in HALVES:
            half |= dict.fromkeys(node.outputs, made)


def _graphs_of(node: ir.Node) -> list[ir.Attr]:
    return [a for a in node.attributes.values() if a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)]


def _type_made(node: ir.Node, read: list[ir.DataType]) -> ir.DataType | None:
    """The half type of what a node makes, where it is one."""
    for name in ("to", "dtype"):
        if name in node.attributes:
            return ir.DataType(node.attributes.get_int(name))
    tensors = [a.as_tensor().dtype for a in node.attributes.values() if a.type == ir.AttributeType.TENSOR]
    if node.op_type in ("Constant", "ConstantOfShape"):
        return tensors[0] if tensors else None
    known = [value.dtype for value in node.outputs if value.dtype is not None]
    if known:
        return next((dtype for dtype in known if dtype in HALVES), known[0])
    return read[0] if read and node.op_type not in NOT_HALF else None


def widen(model: ir.Model) -> tuple[HalfParts, list[str]]:
    """Make everything half float32, in place. Returns what was half, and notes; nothing where nothing was."""
    if model.functions and _any_half(model):
        common.InlinePass()(model)
    found = find_half(model)
    if not found and not _any_half(model):
        return found, []
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.outputs):
            _widen_value(value)
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype in HALVES:
                value.const_value = ir.tensor(restored(value.const_value), name=value.name)
            _widen_value(value)
    for node in list(model.graph.all_nodes()):
        _widen_node(node)
    return found, _notes(found)


def _any_half(model: ir.Model) -> bool:
    """Whether anything at all is half, in functions too."""
    graphs = [*model.graphs(), *(function.graph for function in model.functions.values())]
    values = [v for g in graphs for v in (*g.inputs, *g.outputs, *g.initializers.values())]
    nodes = [node for g in graphs for node in g.all_nodes()]
    return (
        any(value.dtype in HALVES for value in (*values, *(v for node in nodes for v in node.outputs)))
        or any(attribute.type == ir.AttributeType.INT and attribute.name in TYPES and attribute.value in map(int, HALVES)
               for node in nodes for attribute in node.attributes.values())
        or any(attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in HALVES
               for node in nodes for attribute in node.attributes.values())
    )  # fmt: skip


def _widen_value(value: ir.Value) -> None:
    if value.dtype in HALVES:
        assert value.type is not None
        value.type = _nested(value.type)  # `value.dtype = ` would change a type object that clones share


def _nested(kind: ir.TypeProtocol) -> ir.TypeProtocol:
    """A sequence or an optional of float32 for one of half."""
    inner = getattr(kind, "elem_type", None)
    if isinstance(kind, ir.SequenceType | ir.OptionalType) and inner is not None:
        return type(kind)(_nested(inner))
    return ir.TensorType(FLOAT)


def _widen_node(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if name in TYPES and attribute.type == ir.AttributeType.INT and attribute.value in map(int, HALVES):
            node.attributes[name] = ir.AttrInt64(name, int(FLOAT))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in HALVES:
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(restored(attribute.as_tensor())))
    for value in node.outputs:
        _widen_value(value)
        _forget_half(value, node)
    source = node.inputs[0] if node.inputs else None
    if node.op_type == "Cast" and node.domain == "" and source is not None and source.dtype == FLOAT and _casts_to_float(node):
        _drop_cast(node, source)


def _forget_half(value: ir.Value, node: ir.Node) -> None:
    """What was known of a value in half: a Constant's is its tensor, anything else is computed anew in float32."""
    if value.const_value is None or value.const_value.dtype not in HALVES:
        return
    held = node.attributes.get("value") if node.op_type == "Constant" and node.domain == "" else None
    value.const_value = None if held is None else ir.tensor(held.as_tensor().numpy(), name=value.name)


def _casts_to_float(node: ir.Node) -> bool:
    return node.attributes.get_int("to", 0) == int(FLOAT)


def _drop_cast(node: ir.Node, source: ir.Value) -> None:
    """float32 to float32: its readers read what it read, where it makes no output of a graph."""
    made = node.outputs[0]
    if made.is_graph_output():
        return
    made.replace_all_uses_with(source)
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def _notes(found: HalfParts) -> list[str]:
    notes = []
    if found.stored:
        name, size = NAMES[found.stored_in or ir.DataType.FLOAT16], found.stored_bytes / 2**20
        notes.append(f"{found.stored} weights stored in {name} are float32 now, exactly: {size:.1f} MiB become {2 * size:.1f}")
    if found.computed_in is not None:
        notes.append(
            f"the source computes in {NAMES[found.computed_in]}; its graph is computed in float32, and typed again as asked "
            "(--fp16, --bf16)"
        )
    if found.ports:
        notes.append(f"inputs and outputs of half precision are float32 now: {', '.join(found.ports)}")
    return notes
