"""Which nodes of a fused graph work on one token at a time, so that a batch without padding is theirs as well."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph import DOMAIN, Refused, constant_number, same_dim

ATTENTIONS = ("FusedAttention", "FusedRotaryAttention")
# (inputs in front of the weights: those are per token, and the rest must not be)
PER_TOKEN = {"FusedLinear": 1, "FusedBiasGelu": 1, "FusedGelu": 1, "FusedSkipLayerNorm": 2, "FusedSkipRmsNorm": 2}
ELEMENTWISE = frozenset(
    "Add Sub Mul Div Pow Min Max Neg Abs Sqrt Exp Log Reciprocal Relu Gelu Erf Tanh Sigmoid Softplus Elu Selu LeakyRelu "
    "HardSigmoid HardSwish Mish Clip Identity Cast Where Sign Sin Cos Round Floor Ceil Not Softsign Celu ThresholdedRelu".split()
)
LAST_AXIS = frozenset("Softmax LogSoftmax LayerNormalization RMSNormalization Split".split())
REDUCED = frozenset("ReduceMean ReduceSum ReduceMax ReduceMin ReduceSumSquare ReduceL2".split())


@dataclasses.dataclass(frozen=True)
class Region:
    """The nodes that get packed tokens, in the graph's order, and the [batch, length] mask that says what a token is."""

    mask: ir.Value
    nodes: tuple[ir.Node, ...]
    grid: Grid
    left: tuple[str, ...] = ()  # why an attention stays as it is

    @property
    def attentions(self) -> list[ir.Node]:
        return [node for node in self.nodes if node.op_type in ATTENTIONS]


def find_region(graph: ir.Graph) -> Region:
    """The largest region around the attentions of one mask. Raises Refused with the reason where there is none."""
    masks: dict[str, ir.Value] = {}
    members: dict[str, list[ir.Node]] = {}
    left: list[str] = []
    others = sorted({n.op_type for n in graph if n.domain == DOMAIN and "Attention" in n.op_type and n.op_type not in ATTENTIONS})
    left += [f"{op}: has no packed form" for op in others]
    for node in (node for node in graph if node.domain == DOMAIN and node.op_type in ATTENTIONS):
        try:
            mask = padding_mask(node)
        except Refused as why:
            left.append(f"{node.name}: {why}")
            continue
        masks[str(mask.name)] = mask
        members.setdefault(str(mask.name), []).append(node)
    if not members:
        raise Refused("; ".join(left) or "no attention was fused")
    chosen = max(members, key=lambda name: len(members[name]))
    left += [f"{len(nodes)} attentions under the mask {name!r}" for name, nodes in members.items() if name != chosen]
    grid = Grid(masks[chosen])
    _name_outputs(graph, grid)
    nodes = _grow(graph, members[chosen], grid)
    return Region(masks[chosen], tuple(nodes), grid, tuple(left))


def _name_outputs(graph: ir.Graph, grid: Grid) -> None:
    """Some exporters name the dims of outputs anew: what is added to, or normalised from, [batch, length, k] is of that size."""
    for value in graph.outputs:
        node = value.producer()
        if node is None or value.shape is None or node.op_type not in (*PER_TOKEN, *ELEMENTWISE):
            continue
        dims = value.shape.dims
        loose = len(dims) > 2 and not any(isinstance(dim, int) for dim in dims[:2])
        if loose and grid.holds(node.inputs[0]) and len(node.inputs[0].shape) == len(dims):  # type: ignore[union-attr,arg-type]
            value.shape = ir.Shape([grid.batch, grid.length, *dims[2:]])


def padding_mask(attention: ir.Node) -> ir.Value:
    """The [batch, length] value that an attention's mask is made of. Raises Refused where it is none or more than one."""
    mask = attention.inputs[1]
    if mask is None:
        raise Refused("it has no mask, so nothing says what is padding")
    found = {str(value.name): value for value in _roots(mask)}
    if len(found) != 1:
        raise Refused(f"its mask is made of {', '.join(sorted(found)) or 'constants'}, not of one mask [batch, length]")
    chosen = next(iter(found.values()))
    x = attention.inputs[0]
    if x is None or not Grid(chosen).holds(x):
        raise Refused(f"its mask {chosen.name!r} {chosen.shape} tells nothing of the positions of {x.shape if x else None}")
    return chosen


def _roots(value: ir.Value) -> Iterator[ir.Value]:
    """Inputs of FusedScoreMask, and graph inputs [batch, length], that a mask is computed from; sizes do not count."""
    seen, todo = set(), [value]
    while todo:
        each = todo.pop()
        if each in seen:
            continue
        seen.add(each)
        node = each.producer()
        if node is None:
            if each.is_graph_input() and each.shape is not None and len(each.shape) == 2:
                if each.dtype is not None and each.dtype.is_floating_point():
                    raise Refused(
                        f"its mask {each.name!r} is added to the scores as it is given: no 0 and 1 says what is padding"
                    )
                yield each
        elif node.op_type == "FusedScoreMask" and node.inputs[0] is not None:
            yield node.inputs[0]
        elif node.op_type not in ("Shape", "Size"):
            todo += [given for given in node.inputs if given is not None]


class Grid:
    """What is laid out as [batch, length, ...]."""

    def __init__(self, mask: ir.Value) -> None:
        assert mask.shape is not None
        self.batch, self.length = mask.shape[0], mask.shape[1]

    def holds(self, value: ir.Value | None) -> bool:
        """Whether a value has an entry for each position: [batch, length, numbers ...]."""
        shape = value.shape if value is not None else None
        if shape is None or len(shape) < 2 or not all(isinstance(dim, int) for dim in shape.dims[2:]):
            return False
        return same_dim(shape[0], self.batch) and same_dim(shape[1], self.length)

    def spreads(self, value: ir.Value | None, rank: int) -> bool:
        """Whether a value means the same for every token ([], [k], [1,1,k]), or can be read token by token ([1, length, k])."""
        if value is None:
            return True
        if value.shape is None or len(value.shape) > rank:
            return False
        dims = [1] * (rank - len(value.shape)) + list(value.shape.dims)
        front, back = dims[:2], dims[2:]
        if not all(isinstance(dim, int) for dim in back):
            return False
        return all(dim == 1 or same_dim(dim, own) for dim, own in zip(front, (self.batch, self.length), strict=True))


def _grow(graph: ir.Graph, attentions: list[ir.Node], grid: Grid) -> list[ir.Node]:
    """Backwards from the attentions over what works on one token, then forwards from all of that."""
    members, todo = set(attentions), list(attentions)
    while todo:
        for value in todo.pop().inputs:
            node = value.producer() if value is not None else None
            if node is not None and node not in members and _is_float(node) and _per_token(node, grid):
                members.add(node)
                todo.append(node)
    for node in graph:
        fed = any(value is not None and value.producer() in members and grid.holds(value) for value in node.inputs)
        if fed and node not in members and _is_float(node) and _per_token(node, grid):
            members.add(node)
    return [node for node in graph if node in members]


def _is_float(node: ir.Node) -> bool:
    """Ids, positions and masks stay in the padded batch, where their own arithmetic wants them."""
    return all(value.dtype is not None and value.dtype.is_floating_point() for value in node.outputs if value.name)


def _per_token(node: ir.Node, grid: Grid) -> bool:
    if not all(grid.holds(value) for value in node.outputs if value.name):
        return False
    rank = len(node.outputs[0].shape)  # type: ignore[arg-type]
    if node.domain == DOMAIN:
        return _fused_per_token(node, grid)
    if node.op_type in ELEMENTWISE:
        return all(grid.spreads(value, rank) for value in node.inputs)
    if node.op_type == "MatMul":
        return grid.holds(node.inputs[0]) and rank > 2 and _is_weight(node.inputs[1])
    if node.op_type in LAST_AXIS:
        axis = node.attributes.get_int("axis", 0 if node.op_type == "Split" else -1)
        return rank > 2 and axis in (-1, rank - 1) and grid.holds(node.inputs[0])
    if node.op_type in REDUCED:
        axes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
        last = axes is not None and np.all(np.isin(axes.numpy(), (-1, rank - 1)))
        return bool(last) and rank > 2 and grid.holds(node.inputs[0])
    if node.op_type == "Concat":
        return rank > 2 and node.attributes["axis"].as_int() in (-1, rank - 1) and all(grid.holds(v) for v in node.inputs)
    return node.op_type == "Gather" and _looks_up(node, grid)


def _fused_per_token(node: ir.Node, grid: Grid) -> bool:
    if node.op_type == "FusedEmbeddings":
        return all(value is None or grid.spreads(value, 2) for value in node.inputs[:3])
    front = PER_TOKEN.get(node.op_type, 0)
    return (
        bool(front) and all(grid.holds(value) for value in node.inputs[:front]) and not any(map(grid.holds, node.inputs[front:]))
    )


def _looks_up(node: ir.Node, grid: Grid) -> bool:
    table, ids = node.inputs[0], node.inputs[1]
    return _is_weight(table) and grid.holds(ids) and node.attributes.get_int("axis", 0) == 0


def _is_weight(value: Any) -> bool:
    return value is not None and value.const_value is not None and len(value.const_value.shape) == 2


def of_keys_alone(mask: ir.Value | None) -> bool:
    """Whether a mask is [B or 1, 1, 1, S]: then it may be read token by token."""
    return mask is not None and mask.shape is not None and len(mask.shape) == 4 and mask.shape[1] == 1 and mask.shape[2] == 1


def reads_first_position(node: ir.Node) -> bool:
    """Whether a head takes a position by its number, as the [CLS] token: it must be kept then, padding or not."""
    return node.op_type in ("Gather", "Slice", "GatherND") and constant_number(node.inputs[1]) is not None
