"""attention: projections, head split, FusedSdpa, head merge and output projection, as bertc.FusedAttention with packed weights.

    FusedAttention(x [B,S,H], mask, Wqkv [H,3*h*d], bqkv [3*h*d], Wo [h*d,H], bo [H]; num_heads, scale) -> [B,S,H]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern

from ..rewrite import DOMAIN

OP = "FusedAttention"


class SelfAttention(pattern.RewriteRuleClassBase):
    """Behind `linear` and `sdpa`; the shapes of the reshapes are checked by value, not by how they were computed."""

    def __init__(self, merged: bool) -> None:
        super().__init__("attention" + ("_k_transposed_twice" if not merged else ""))
        self.merged = merged

    def pattern(self, op, x, wq, bq, wk, bk, wv, bv, mask, wo, bo):  # type: ignore[no-untyped-def]
        any_ = pattern.ANY_VALUE

        def heads(w, b, perm):  # type: ignore[no-untyped-def]
            linear = op.FusedLinear(x, w, b, _domain=DOMAIN)
            return op.Transpose(op.Reshape(linear, any_, _outputs=[f"split_{w.name}"]), perm=perm)

        q = heads(wq, bq, [0, 2, 1, 3])
        k = heads(wk, bk, [0, 2, 3, 1] if self.merged else [0, 2, 1, 3])
        if not self.merged:
            k = op.Transpose(k, perm=[0, 1, 3, 2])
        v = heads(wv, bv, [0, 2, 1, 3])
        context = op.FusedSdpa(q, k, v, mask, _domain=DOMAIN, _outputs=["sdpa"])
        merged = op.Reshape(op.Transpose(context, perm=[0, 2, 1, 3]), any_, _outputs=["merged"])
        return op.FusedLinear(merged, wo, bo, _domain=DOMAIN)

    def check(self, context, x, wq, wk, wv, wo, split_wq, merged, sdpa, **_):  # type: ignore[no-untyped-def]
        result = pattern.MatchResult()
        shape = split_wq.shape
        if shape is None or len(shape) != 4 or not all(isinstance(d, int) for d in shape[2:]):
            return result.fail("the number of heads and their size are not known", split_wq)
        if merged.shape is None or len(merged.shape) != 3:
            return result.fail("the heads are not merged into [batch, length, width]", merged)
        sizes = {tuple(w.const_value.shape.numpy()) for w in (wq, wk, wv)}
        if len(sizes) != 1:
            return result.fail("q, k and v are of different sizes", wk)
        if shape[2] * shape[3] != wq.const_value.shape[1]:
            return result.fail("the heads do not make up the projection", split_wq)
        return result

    def rewrite(self, op, x, wq, bq, wk, bk, wv, bv, mask, wo, bo, split_wq, sdpa, **_):  # type: ignore[no-untyped-def]
        packed = op.initializer(_packed([wq, wk, wv], axis=1, name=f"{wq.name}.qkv"))
        biases = [b if b is not None else _zeros(w) for b, w in ((bq, wq), (bk, wk), (bv, wv))]
        bias = None
        if any(b is not None for b in (bq, bk, bv)):
            bias = op.initializer(_packed(biases, axis=0, name=f"{wq.name}.qkv_bias"))
        scale = sdpa.producer().attributes["scale"].as_float()
        return op.FusedAttention(x, mask, packed, bias, wo, bo, num_heads=int(split_wq.shape[2]), scale=scale, _domain=DOMAIN)


def _zeros(w: ir.Value) -> ir.Value:
    return ir.Value(name="zeros", const_value=ir.tensor(np.zeros(w.const_value.shape[1], np.float32)))  # type: ignore[union-attr]


def _packed(values: list[Any], axis: int, name: str) -> ir.TensorProtocol:
    """Concatenated when it is read: the parts are held by the source already."""
    tensors = [v.const_value for v in values]
    shape = list(tensors[0].shape.numpy())
    shape[axis] = sum(t.shape[axis] for t in tensors)

    def load() -> ir.TensorProtocol:
        return ir.tensor(np.concatenate([t.numpy() for t in tensors], axis), name=name)

    return ir.LazyTensor(load, dtype=tensors[0].dtype, shape=ir.Shape(shape), name=name, cache=False)


RULES: list[pattern.RewriteRule] = [SelfAttention.rule(True), SelfAttention.rule(False)]
