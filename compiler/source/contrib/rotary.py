"""RotaryEmbedding: pairs of a head's numbers turned by an angle of their position, in halves or interleaved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from ...core import InputError
from ._pieces import count, flag, integers, rank, refuse_flags, size


def rotary_embedding(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """(x [B,S,H] or [B,h,S,d], positions [B,S] or [1], cos [M,d/2], sin; interleaved, num_heads, rotary_embedding_dim)"""
    refuse_flags(node, "is_packed_batching")
    x, positions, cos, sin = node.inputs[:4]
    assert x is not None and positions is not None and cos is not None
    turned = node.attributes.get_int("rotary_embedding_dim", 0)
    by_rows = rank(x) == 3
    given = _heads(op, node, x, cos, turned) if by_rows else op.Transpose(x, perm=[0, 2, 1, 3])  # [B,S,h,d]
    angles = [op.Unsqueeze(_at(op, table, positions, x, by_rows), integers(op, 2)) for table in (cos, sin)]
    made = _turn(op, node, given, angles, turned)
    if by_rows:
        return [op.Reshape(made, op.Shape(x))]
    return [op.Transpose(made, perm=[0, 2, 1, 3])]


def _heads(op: Any, node: ir.Node, x: ir.Value, cos: ir.Value, turned: int) -> ir.Value:
    """[B,S,H] to [B,S,h,d]: by the number of heads, else by the size of a head, twice the width of the tables."""
    heads = node.attributes.get_int("num_heads", 0)
    if turned and not heads:
        raise InputError("rotary_embedding_dim without num_heads has no meaning")
    if heads:
        return op.Reshape(x, integers(op, 0, 0, heads, -1))
    width = cos.const_value.shape.numpy()[1] if cos.const_value is not None else cos.shape[1] if cos.shape is not None else None
    if not isinstance(width, int):
        raise InputError("the size of a head is not known: the tables are not constant, and it has no num_heads")
    return op.Reshape(x, integers(op, 0, 0, -1, 2 * width))


def _at(op: Any, table: ir.Value | None, positions: ir.Value, x: ir.Value, by_rows: bool) -> ir.Value:
    """Rows of a table [B or 1,S,d/2]; one position is where the first token stands."""
    if rank(positions) == 2:
        return op.Gather(table, positions)
    here = op.Add(count(op, size(op, x, 1 if by_rows else 2)), positions)
    return op.Unsqueeze(op.Gather(table, here), integers(op, 0))


def _turn(op: Any, node: ir.Node, x: ir.Value, angles: Sequence[ir.Value], turned: int) -> ir.Value:
    rest = None
    if turned:
        start, end, last, axis = integers(op, 0), integers(op, turned), integers(op, 2**31 - 1), integers(op, -1)
        rest = op.Slice(x, end, last, axis)
        x = op.Slice(x, start, end, axis)
    cos, sin = angles
    if flag(node, "interleaved"):
        pairs = op.Reshape(x, integers(op, 0, 0, 0, -1, 2))
        a, b = (op.Squeeze(part, integers(op, -1)) for part in op.Split(pairs, axis=-1, num_outputs=2, _outputs=2))
    else:
        a, b = op.Split(x, axis=-1, num_outputs=2, _outputs=2)
    first, second = op.Sub(op.Mul(a, cos), op.Mul(b, sin)), op.Add(op.Mul(b, cos), op.Mul(a, sin))
    if flag(node, "interleaved"):
        both = op.Concat(*(op.Unsqueeze(part, integers(op, -1)) for part in (first, second)), axis=-1)
        made = op.Reshape(both, integers(op, 0, 0, 0, -1))
    else:
        made = op.Concat(first, second, axis=-1)
    return made if rest is None else op.Concat(made, rest, axis=-1)


BODIES = {"RotaryEmbedding": rotary_embedding}
