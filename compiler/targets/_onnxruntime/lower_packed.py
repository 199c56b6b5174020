"""FusedPackedAttention for ONNX Runtime on the CPU, which has no kernel for attention over packed tokens.

Rows stand in falling order of length, so a group of neighbours is a slice of them and needs little padding. Each of GROUPS groups
is gathered to [rows, its longest, h, d], attended as a dense batch, and its tokens are taken out again. Where nothing is padded,
no token is moved: the `If` takes the dense form, so that a full batch costs what it did. Everything that depends on lengths alone
is the same for all layers, and the lowering's caller shares it (`share_equal_nodes`).

GROUPS is measured: `python -m benchmarks packed`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

from ...graph import MASK_LOW
from ...ops import Builder, padded_inputs
from ...ops import constant as made_constant
from ...ops.bodies import rotate
from ...packing import of_keys_alone
from .._tensorrt.lower_common import Parts, constant

GROUPS = 4


def share_equal_nodes(model: ir.Model) -> None:
    """Compute once what several nodes compute alike."""
    CommonSubexpressionEliminationPass()(model)


def packed_attention(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedPackedAttention: dense where nothing is padded, else group by group."""
    x, mask, _, _, wo, *_, cos, sin = padded_inputs(node, 11)
    parts, rows = Parts(node), _Rows(op, node)
    linear = {name: op.MatMul(x, parts.weight(op, name)) for name in ("q", "k", "v")}
    bias = parts.query_bias()
    if bias is not None:
        linear["q"] = op.Add(linear["q"], constant(op, node, "q_bias", bias))
    if cos is not None:
        if parts.b is not None:  # turned, a key's bias depends on its position: the softmax sees it
            key_bias = constant(op, node, "k_bias", np.split(parts.b.const_value.numpy(), 3)[1])
            linear["k"] = op.Add(linear["k"], key_bias)
        turns = [rows.of_tokens(turn) for turn in (cos, sin)]
        linear |= {name: _rotated(op, linear[name], turns, parts.heads) for name in ("q", "k")}
    groups, width = list(rows.groups(mask)), parts.heads * parts.size

    def dense(inner: Any) -> ir.Value:
        grid = inner.Concat(rows.shape, _ints(inner, parts.heads, parts.size), axis=0)
        apart = [inner.Reshape(part, grid) for part in linear.values()]
        return inner.Reshape(_attend(inner, apart, rows.sorted_mask(inner, mask)), _ints(inner, 1, -1, width))

    def grouped(inner: Any) -> ir.Value:
        flat = [inner.Reshape(part, _ints(inner, -1, parts.heads, parts.size)) for part in linear.values()]
        found = []
        for index, seen, kept in groups:
            context = _attend(inner, [inner.Gather(part, index, axis=0) for part in flat], seen)
            found.append(inner.Gather(inner.Reshape(context, _ints(inner, -1, width)), kept, axis=0))
        return inner.Unsqueeze(inner.Concat(*found, axis=0), _ints(inner, 0))

    branches = {"then_branch": _branch(node, "dense", dense), "else_branch": _branch(node, "groups", grouped)}
    y, out_bias = op.MatMul(op.If(rows.full, **branches), wo), parts.output_bias()
    return [y if out_bias is None else op.Add(y, constant(op, node, "out_bias", out_bias))]


def _rotated(op: Any, x: ir.Value, turns: Sequence[ir.Value], heads: int) -> ir.Value:
    """[1,T,h*d], each head turned by the angles of its token."""
    return op.Reshape(rotate(op, op.Reshape(x, _ints(op, 0, 0, heads, -1)), *turns), _ints(op, 0, 0, -1))


def _attend(op: Any, parts: Sequence[ir.Value], mask: ir.Value | None) -> ir.Value:
    """softmax(q k + mask) v of [rows, length, h, d], answered as [rows, length, h, d]."""
    q, k, v = (op.Transpose(x, perm=perm) for x, perm in zip(parts, ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)), strict=True))
    scores = op.MatMul(q, k)
    scores = scores if mask is None else op.Add(scores, mask)
    return op.Transpose(op.MatMul(op.Softmax(scores, axis=-1), v), perm=(0, 2, 1, 3))


def _branch(node: ir.Node, name: str, write: Callable[[Any], ir.Value]) -> ir.Graph:
    inner = Builder()
    result = write(inner)
    for index, value in enumerate(value for made in inner.nodes for value in made.outputs):
        value.name = f"{node.name}/{name}/{index}"
    for index, made in enumerate(inner.nodes):
        made.name = f"{node.name}/{name}/{made.op_type}_{index}"
    return ir.Graph([], [result], nodes=inner.nodes, name=f"{node.name}/{name}")


class _Rows:
    """What a batch's lengths decide, in `op`'s graph: the groups of rows, and whether anything is padded."""

    def __init__(self, op: Any, node: ir.Node) -> None:
        tokens, ends, grid = node.inputs[6:9]
        self.op, self.tokens = op, tokens
        self.shape = op.Shape(grid)
        self.count = op.Shape(tokens)
        self.full = op.Equal(op.Squeeze(self.count), op.ReduceProd(self.shape, keepdims=0))
        self.batch, self.length = op.Gather(self.shape, _ints(op, 0)), op.Gather(self.shape, _ints(op, 1))
        self.starts = op.Slice(ends, _ints(op, 0), _ints(op, -1))
        self.lengths = op.Sub(op.Slice(ends, _ints(op, 1), self.op.Shape(ends)), self.starts)
        self.rows = op.Div(op.Gather(tokens, self.starts), self.length)  # in the order of the tokens

    def groups(self, mask: ir.Value | None) -> Iterator[tuple[ir.Value, ir.Value, ir.Value]]:
        """(tokens [n, longest], the mask of their scores, which of [n * longest] are tokens) of each group of n rows."""
        op = self.op
        bounds = [op.Div(op.Mul(self.batch, _ints(op, part)), _ints(op, GROUPS)) for part in range(GROUPS + 1)]
        for start, end in itertools.pairwise(bounds):
            lengths, starts = (op.Slice(values, start, end) for values in (self.lengths, self.starts))
            longest = op.ReduceMax(op.Concat(lengths, _ints(op, 1), axis=0), keepdims=0)  # a group may have no row
            places = op.Unsqueeze(op.Range(_number(op, 0), longest, _number(op, 1)), _ints(op, 0))
            inside = op.Less(places, op.Unsqueeze(lengths, _ints(op, 1)))
            last = op.Sub(self.count, _ints(op, 1))
            index = op.Min(op.Add(op.Unsqueeze(starts, _ints(op, 1)), places), last)
            there = op.Unsqueeze(inside, _ints(op, 1, 2))
            seen = op.Where(there, self._of_group(mask, index, start, end, longest), made_constant(op, MASK_LOW))
            kept = op.Squeeze(op.NonZero(op.Reshape(inside, _ints(op, -1))), _ints(op, 0))
            yield index, seen, kept

    def _of_group(self, mask: ir.Value | None, index: ir.Value, start: ir.Value, end: ir.Value, longest: ir.Value) -> ir.Value:
        """The mask of the padded batch as the group sees it."""
        op = self.op
        if mask is None:
            return made_constant(op, 0.0)
        if of_keys_alone(mask):
            by_key = op.Reshape(op.Expand(mask, self._whole(mask)), _ints(op, -1))
            return op.Unsqueeze(op.Gather(op.Gather(by_key, self.tokens), index), _ints(op, 1, 2))
        assert mask.shape is not None
        own = mask if mask.shape[0] == 1 else op.Gather(mask, op.Slice(self.rows, start, end), axis=0)
        to = op.Reshape(longest, _ints(op, -1))
        for axis in (2, 3):
            own = own if mask.shape[axis] == 1 else op.Slice(own, _ints(op, 0), to, _ints(op, axis))
        return own

    def of_tokens(self, turn: ir.Value) -> ir.Value:
        """Angles [1|B,1,S,d] of the padded batch as [T,1,d]."""
        op = self.op
        assert turn.shape is not None
        flat = op.Reshape(turn, op.Concat(_ints(op, -1, 1), op.Shape(turn, start=3), axis=0))
        return op.Gather(flat, op.Mod(self.tokens, self.length) if turn.shape[0] == 1 else self.tokens)

    def _whole(self, mask: ir.Value) -> ir.Value:
        return self.op.Concat(self.batch, _ints(self.op, 1, 1), self.length, axis=0)

    def sorted_mask(self, inner: Any, mask: ir.Value | None) -> ir.Value | None:
        """The mask with its rows in the order of the tokens."""
        if mask is None or mask.shape is None or mask.shape[0] == 1:
            return mask
        return inner.Gather(mask, self.rows, axis=0)


def _ints(op: Any, *values: int) -> ir.Value:
    return made_constant(op, list(values), np.int64)


def _number(op: Any, value: int) -> ir.Value:
    return made_constant(op, value, np.int64)
