"""How bodies and lowerings are written: a builder of nodes, and the pieces that several operators are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from ..core import InputError, did_you_mean

Body = Callable[[Any, ir.Node], Sequence[ir.Value]]
Input = ir.Value | None

EPSILON = 1e-5


class Builder(Tape):
    """`op.Split(x, axis=2, num_outputs=3, _outputs=3)`: makes a node and gives its output, or a sequence of `_outputs`."""

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)  # no operator: copy and pickle ask for many names

        def make(*inputs: Input, _domain: str = "", _outputs: int = 1, **attributes: Any) -> Any:
            if not _domain and any(value is None for value in inputs[:2]):  # none of what is made here is optional
                raise InputError(f"an input is absent that its {op_type} needs")
            made = self.op_multi_out(op_type, inputs, attributes, num_outputs=_outputs, domain=_domain)
            return made[0] if _outputs == 1 else made

        return make


class Speller(Builder):
    """Spells out Gelu: inside a function, where types are not known, the ONNX reference evaluator cannot run the operator."""

    def Gelu(self, x: ir.Value, approximate: str) -> ir.Value:
        half = self.Mul(x, constant(self, 0.5))
        if approximate == "tanh":
            cubic = self.Mul(constant(self, 0.044715), self.Mul(x, self.Mul(x, x)))
            inner = self.Tanh(self.Mul(self.Add(x, cubic), constant(self, math.sqrt(2 / math.pi))))
        else:
            inner = self.Erf(self.Mul(x, constant(self, math.sqrt(0.5))))
        return self.Mul(half, self.Add(inner, constant(self, 1.0)))


def padded_inputs(node: ir.Node, count: int) -> list[Any]:
    """The node's inputs, None where one is absent; trailing ones may be left out."""
    return [*node.inputs, *[None] * (count - len(node.inputs))]


def constant(op: Any, value: Any, dtype: type = np.float32) -> ir.Value:
    """A Constant node; of float32 unless another type is named."""
    return op.Constant(value=ir.tensor(np.asarray(value, dtype)))


def add_all(op: Any, *terms: Input) -> ir.Value:
    """The sum of the terms that are there."""
    total, *rest = [term for term in terms if term is not None]
    for term in rest:
        total = op.Add(total, term)
    return total


def gelu(op: Any, x: ir.Value, form: str) -> ir.Value:
    """gelu(x) of form "erf", "tanh" or "quick". Raises InputError for another."""
    if form == "quick":
        return op.Mul(x, op.Sigmoid(op.Mul(x, constant(op, 1.702))))
    known = {"erf": "none", "tanh": "tanh"}
    if form not in known:
        raise InputError(f"unknown GELU form {form[:80]!r}{did_you_mean(form, [*known, 'quick'])}")
    return op.Gelu(x, approximate=known[form])


def layer_norm(op: Any, x: ir.Value, gamma: ir.Value, beta: Input, epsilon: float) -> ir.Value:
    """LayerNormalization over the last axis."""
    given = [x, gamma] if beta is None else [x, gamma, beta]
    return op.LayerNormalization(*given, axis=-1, epsilon=epsilon)


def scaled_dot_product(op: Any, q: ir.Value, k_t: ir.Value, v: ir.Value, mask: Input, scale: float) -> ir.Value:
    """softmax(q k_t * scale + mask) v."""
    scaled = q if scale == 1 else op.Mul(q, constant(op, scale))  # q is smaller than the scores
    scores = add_all(op, op.MatMul(scaled, k_t), mask)
    return op.MatMul(op.Softmax(scores, axis=-1), v)


def head_count(node: ir.Node) -> int:
    """The attribute num_heads. Raises InputError without it."""
    if not (heads := node.attributes.get_int("num_heads", 0)):
        raise InputError("it has no attribute num_heads")
    return heads


def split_heads(op: Any, x: ir.Value, w: ir.Value, b: Input, heads: int, parts: int) -> Sequence[ir.Value]:
    """x W + b of packed projections as so many parts, each [B,S,h,d]."""
    packed = op.Reshape(add_all(op, op.MatMul(x, w), b), constant(op, [0, 0, parts * heads, -1], np.int64))
    return op.Split(packed, axis=2, num_outputs=parts, _outputs=parts)


def merge_heads(op: Any, context: ir.Value, wo: ir.Value, bo: Input) -> ir.Value:
    """[B,h,S,d] to [B,S,h*d], and the output projection."""
    merged = op.Reshape(op.Transpose(context, perm=[0, 2, 1, 3]), constant(op, [0, 0, -1], np.int64))
    return add_all(op, op.MatMul(merged, wo), bo)
