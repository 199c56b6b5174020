"""FusedEmbeddings: a position table without positions counts from 0, a type table without types is read at row 0.

FusedEmbeddings(ids [B,S], positions [1|B,S]?, types [B,S]?, word [V,H], position [P,H]?, type [Y,H]?, gamma, beta;
                epsilon) -> [B,S,H]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..builder import EPSILON, add_all, constant, layer_norm
from ..declared import given_inputs

OP = "FusedEmbeddings"


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    *_, gamma, beta = given_inputs(node, 8)
    return [layer_norm(op, looked_up(op, node), gamma, beta, node.attributes.get_float("epsilon", EPSILON))]


def looked_up(op: Any, node: ir.Node) -> ir.Value:
    """The sum of the lookups, [B,S,H]."""
    ids, positions, types, word, position, type_, *_ = given_inputs(node, 8)
    terms = [op.Gather(word, ids)]
    if position is not None and positions is not None:
        terms.append(op.Gather(position, positions))
    elif position is not None:
        zero, one = constant(op, [0], np.int64), constant(op, [1], np.int64)
        terms.append(op.Slice(position, zero, op.Shape(ids, start=1, end=2), zero, one))
    if type_ is not None:
        terms.append(op.Gather(type_, types if types is not None else constant(op, 0, np.int64)))
    return add_all(op, *terms)
