"""The two products of an attention as one site, where the target has an int8 kernel for both."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ..core import Profile
from ..graph import ConcreteShapes, Graph, module_path
from ..targets import Int8Attention
from .sites import ATTENTION, Groups, Site, Sites

PASSED = frozenset({"Add", "Mul", "Div", "Where", "Cast", "Reshape", "Transpose"})


@dataclasses.dataclass(frozen=True)
class Attention:
    """The products that a kernel takes at all sizes of the profiles; of the others, why it does not."""

    kernel: Int8Attention
    profiles: Sequence[Profile]

    def __call__(self, graph: Graph, groups: Groups, flops: Mapping[str, float]) -> Sites:
        """The sites, and the reason for each product of an attention that is none."""
        shapes = [ConcreteShapes(graph, {name: sizes.max for name, sizes in profile.items()}) for profile in self.profiles]
        found: list[Site] = []
        refused: dict[str, str] = {}
        for node in graph.model.graph:
            site = _attention(node, groups, flops)
            if site is None:
                continue
            if why := self._refusal(node, shapes):
                refused |= dict.fromkeys(site.nodes, why)
            else:
                found.append(site)
        return Sites(tuple(found), refused)

    def _refusal(self, softmax: ir.Node, shapes: Sequence[ConcreteShapes]) -> str:
        """Why the kernel does not take an attention; "" where it does, or where its sizes are not known."""
        scores = _scores(softmax.inputs[0])
        queries = [dims for each in shapes if scores is not None and (dims := each.dims(scores.inputs[0])) is not None]
        if queries and queries[0][-1] not in self.kernel.sizes:
            sizes = ", ".join(map(str, self.kernel.sizes))
            return f"no int8 kernel for attention with heads of {queries[0][-1]}, only of {sizes}"
        longest = max((max(dims[-2:]) for each in shapes if (dims := each.dims(softmax.outputs[0]))), default=0)
        if longest > self.kernel.longest:
            return f"no int8 kernel for attention over {longest} positions, only up to {self.kernel.longest} (--profile)"
        return ""


def _attention(node: ir.Node, groups: Groups, flops: Mapping[str, float]) -> Site | None:
    """softmax(q k + mask) v, seen from its Softmax."""
    users = [user for user, index in node.outputs[0].uses() if user.op_type == "MatMul" and index == 0]
    scores = _scores(node.inputs[0]) if node.op_type == "Softmax" else None
    if scores is None or len(users) != 1 or len(list(node.outputs[0].uses())) != 1:
        return None
    q, k = scores.inputs
    _, v = users[0].inputs
    values = (q, k, node.outputs[0], v)
    if any(value is None or value.const_value is not None for value in values):
        return None
    names = str(scores.name), str(users[0].name)
    behind = _behind(users[0].outputs[0], groups)
    if not behind:
        return None
    inputs = tuple(str(value.name) for value in values if value is not None)
    return Site(str(node.name), ATTENTION, names, inputs, module_path(node), flops[names[0]] + flops[names[1]], behind)


def _scores(value: ir.Value | None) -> ir.Node | None:
    """The MatMul whose result, masked and scaled, is this value."""
    while value is not None and (maker := value.producer()) is not None:
        if maker.op_type == "MatMul":
            right = maker.inputs[1]
            return maker if right is not None and right.const_value is None else None
        if maker.op_type not in PASSED:
            return None
        products = [v for v in maker.inputs if v is not None and v.const_value is None and _leads(v)]
        value = products[0] if len(products) == 1 else None  # a sum of several products is no attention a kernel is made of
    return None


def _leads(value: ir.Value) -> bool:
    """Whether a value is a product or arithmetic on one, and not the mask."""
    maker = value.producer()
    return maker is not None and (maker.op_type == "MatMul" or (maker.op_type in PASSED and any(
        _leads(v) for v in maker.inputs if v is not None and v.const_value is None)))  # fmt: skip


def _behind(value: ir.Value, groups: Groups) -> str:
    """The site that reads the context, through moves."""
    for _ in range(4):
        if value in groups:
            return str(groups[value][0].name)
        users = [user for user, _ in value.uses()]
        if len(users) != 1:
            return ""
        value = users[0].outputs[0]
    return ""
