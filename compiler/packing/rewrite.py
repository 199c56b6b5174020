"""Give the nodes of a region [1, tokens, ...] in place of [batch, length, ...]."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..core import InputError
from ..graph import DOMAIN, Graph, Refused
from ..ops import Builder, constant, free_name, padded_inputs, taken_names
from .region import ATTENTIONS, Region, find_region, of_keys_alone, reads_first_position

TOKENS = "packed_tokens"  # the dimension's name


@dataclasses.dataclass(frozen=True)
class Packing:
    """A graph whose encoder sees no padding, and what became of it."""

    graph: Graph
    facts: Mapping[str, Any]

    def summary(self) -> str:
        """What was packed, and what was not."""
        found = self.facts
        words = f"packed: {found['attentions']} attentions run without the padding that {found['mask']!r} tells"
        if found["outputs"]:
            words += f"; {', '.join(found['outputs'])}: 0 at padding"
        return words + (f"; not packed: {'; '.join(found['not_packed'])}" if found["not_packed"] else "")


def pack(fused: Graph) -> Packing:
    """A copy of a fused graph that computes on tokens alone. Raises InputError, with the reason, where it has no such form."""
    graph = fused.copy()
    try:
        region = find_region(graph.model.graph)
        return _Rewrite(graph, region).run()
    except Refused as why:
        raise InputError(f"--packed: {why}; build without it") from why


class _Rewrite:
    def __init__(self, graph: Graph, region: Region) -> None:
        self.graph, self.region, self.members = graph, region, set(region.nodes)
        self.op = Builder()
        self.replaced: dict[ir.Value, ir.Value] = {}
        self.packed: dict[ir.Value, ir.Value] = {}
        self.mask = region.mask
        self.made = {value for node in region.nodes for value in node.outputs}
        # Tokens alone are left where no head reads a position by its number: then a mask of keys says nothing more. A float mask
        # may weigh them, and a mask by position wants rows that begin where they did.
        by_number = any(self._exits_by_number(node) for node in region.nodes)
        counts = self.mask.dtype is not None and not self.mask.dtype.is_floating_point()
        self.from_start = by_number or not counts or not all(of_keys_alone(node.inputs[1]) for node in region.attentions)

    def run(self) -> Packing:
        exits = [value for node in self.region.nodes for value in node.outputs if self._leaves(value)]
        attentions, outputs = len(self.region.attentions), self._outputs_by_position(exits)
        if outputs and not self.mask.is_graph_input():
            raise Refused(f"output {outputs[0].name!r} has padded positions, and the mask is no input that could tell which")
        self.tokens, self.ends, self.rows, self.places = self.op.op_multi_out(
            "FusedPackedLayout", [self.mask], {"from_start": int(self.from_start)}, num_outputs=4, domain=DOMAIN
        )
        self.shape = self.op.Shape(self.mask)
        names = sorted(str(value.name) for value in outputs)
        for node in self.region.nodes:
            self._feed(node)
        for value in exits:
            self._restore(self.replaced.get(value, value))
        for value in outputs:
            if value not in exits:
                self._blank(value)
        self._place()
        facts = {
            "mask": self.mask.name,
            "from_start": self.from_start,
            "attentions": attentions,
            "outputs": names,
            "not_packed": list(self.region.left),
        }
        return Packing(self.graph, facts)

    def _outputs_by_position(self, exits: Sequence[ir.Value]) -> list[ir.Value]:
        """Outputs [batch, length, ...] that come of packed tokens: their padded positions hold nothing of the model's."""
        reached, todo = set(exits), list(exits)
        while todo:
            for node in {use.node for use in todo.pop().uses()}:
                new = set(node.outputs) - reached
                reached |= new
                todo += new
        return [value for value in self.graph.model.graph.outputs if value in reached and self.region.grid.holds(value)]

    def _blank(self, value: ir.Value) -> None:
        """0 at the padding of an output that a head computed from what was restored."""
        op, rank = self.op, len(value.shape or ())
        none = op.Expand(constant(op, False, np.bool_), op.ReduceProd(self.shape))
        places, yes = op.Unsqueeze(self.tokens, constant(op, [1], np.int64)), constant(op, True, np.bool_)
        kept = op.ScatterND(none, places, op.Expand(yes, op.Shape(self.tokens)))
        there = op.Reshape(kept, op.Concat(self.shape, constant(op, [1] * (rank - 2), np.int64), axis=0))
        assert value.dtype is not None
        blanked = op.Where(there, value, constant(op, 0, value.dtype.numpy().type))
        blanked.type, blanked.shape = value.type, value.shape
        self._output_instead(value, blanked)

    def _output_instead(self, value: ir.Value, new: ir.Value) -> None:
        outputs, name = self.graph.model.graph.outputs, value.name
        value.name, new.name = f"{name}/packed", name
        outputs[list(outputs).index(value)] = new

    def _leaves(self, value: ir.Value) -> bool:
        return value.is_graph_output() or any(use.node not in self.members for use in value.uses())

    def _exits_by_number(self, node: ir.Node) -> bool:
        uses = [use.node for value in node.outputs for use in value.uses() if use.node not in self.members]
        return any(map(reads_first_position, uses))

    def _feed(self, node: ir.Node) -> None:
        """Packed inputs for a node; attention becomes its packed form."""
        if node.op_type in ATTENTIONS:
            self._attention(node)
            return
        for index, value in enumerate(node.inputs):
            if value is None or value in self.made or value.const_value is not None:
                continue
            node.replace_input_with(index, self._pack(value, self._rank(node)))
        if node.op_type == "FusedEmbeddings":
            _, positions, _, _, table, *_ = padded_inputs(node, 8)
            if table is not None and positions is None:
                counted = self.op.Unsqueeze(self.places, constant(self.op, [0], np.int64))
                counted.type, counted.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([1, TOKENS])
                node.replace_input_with(1, counted)
        for value in node.outputs:
            _packed_shape(value)

    def _rank(self, node: ir.Node) -> int:
        return 2 if node.op_type in ("FusedEmbeddings", "Gather") else len(node.outputs[0].shape or ())

    def _attention(self, node: ir.Node) -> None:
        x, mask, *rest = padded_inputs(node, 8 if node.op_type == "FusedRotaryAttention" else 6)
        angles, weights = (rest[:2], rest[2:]) if node.op_type == "FusedRotaryAttention" else ([], rest)
        x = x if x in self.made else self._pack(x, 3)
        given = [x, mask if self.from_start else None, *weights, self.tokens, self.ends, self.mask, *angles]
        new = ir.Node(DOMAIN, "FusedPackedAttention", given, list(node.attributes.values()), num_outputs=1, name=node.name)
        new.metadata_props.update(node.metadata_props)
        old, value = node.outputs[0], new.outputs[0]
        graph = self.graph.model.graph
        ir.convenience.replace_nodes_and_values(graph, node, [node], [new], [old], [value])  # type and shape too
        _packed_shape(value)
        self.members.add(new)
        self.made.add(value)
        self.replaced[old] = value

    def _pack(self, value: ir.Value, rank: int) -> ir.Value:
        """A value of the padded batch, read token by token; one that is the same for all tokens stays."""
        shape = value.shape
        assert shape is not None
        dims = [1] * (rank - len(shape)) + list(shape.dims)
        if dims[:2] == [1, 1]:
            return value
        if value not in self.packed:
            spread = "positions" if dims[0] == 1 else "rows" if dims[1] == 1 else ""
            whole, axes = value, list(range(rank - len(shape)))
            if axes:
                whole = self.op.Unsqueeze(value, constant(self.op, axes, np.int64))
                whole.type, whole.shape = value.type, ir.Shape(dims)
            made = self.op.FusedRemovePadding(whole, *self._layout, spread=spread, _domain=DOMAIN)
            made.type, made.shape = value.type, ir.Shape([1, TOKENS, *dims[2:]])
            self.packed[value] = made
        return self.packed[value]

    @property
    def _layout(self) -> tuple[ir.Value, ...]:
        return self.tokens, self.rows, self.places, self.mask

    def _restore(self, value: ir.Value) -> None:
        """The padded batch again, zeros at padding, for every reader outside."""
        outside = [use for use in value.uses() if use.node not in self.members]
        restored = self.op.FusedRestorePadding(value, *self._layout, _domain=DOMAIN)
        assert self.mask.shape is not None and value.shape is not None
        restored.type, restored.shape = value.type, ir.Shape([*self.mask.shape.dims, *value.shape.dims[2:]])
        for use in outside:
            use.node.replace_input_with(use.idx, restored)
        if value.is_graph_output():
            self._output_instead(value, restored)

    def _place(self) -> None:
        """Name the new nodes, put them into the graph, and sort it."""
        graph, taken = self.graph.model.graph, taken_names(self.graph.model)
        for index, node in enumerate(self.op.nodes):
            node.name = free_name(f"packed/{node.op_type}_{index}", taken)
            for value in node.outputs:
                value.name = value.name or free_name(f"packed/{node.op_type}_{index}_{value.index()}", taken)
            graph.append(node)
        graph.sort()


def _packed_shape(value: ir.Value) -> None:
    if value.shape is not None:
        value.shape = ir.Shape([1, TOKENS, *value.shape.dims[2:]])
