"""How torch's multi_head_attention_forward cuts weights and folds heads, spelled as other attention: shapes alone change.

It runs length first ([S,B,H]), packs the weights of q, k and v as rows of one matrix, or cuts that matrix in each run, and folds
the heads into the batch ([B*h,S,d]). Every rewrite here is exact, and holds for what is no attention as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern

from .dims import constant_number, same_dim, same_shape

SWAP = [1, 0, 2]
ANY = pattern.ANY_VALUE
PARTS = ("a", "b", "c")


class SplitConstant(pattern.RewriteRuleClassBase):
    """Split of a constant along its first axis, in two or three: the parts. A weight's parts are views of it, not copies."""

    def __init__(self, count: int) -> None:
        super().__init__(f"SplitConstant{count}")
        self.count = count

    def pattern(self, op, w):
        return op.Split(w, _allow_other_inputs=True, _outputs=list(PARTS[: self.count]))

    def check(self, context, w, a, **m):
        result = pattern.MatchResult()
        if w.const_value is None or not len(w.const_value.shape):
            return result.fail("not a constant with an axis", w)
        if a.producer().attributes.get_int("axis", 0) % len(w.const_value.shape):
            return result.fail("not along the first axis", w)
        parts = [a, *(m[name] for name in PARTS[1 : self.count])]
        known = all(part.shape is not None and isinstance(part.shape[0], int) for part in parts)
        return result if known else result.fail("the sizes of the parts are not known", w)

    def rewrite(self, op, w, **m):
        array, start, made = w.const_value.numpy(), 0, []
        for part in (m[name] for name in PARTS[: self.count]):
            end = start + part.shape[0]
            made.append(op.Identity(op.initializer(ir.tensor(array[start:end]), name=f"{part.name}.part")))
            start = end
        return made


class PackedProjection(pattern.RewriteRuleClassBase):
    """One of the parts that a packed projection is stacked to, [n,S,B,H]: the product with that part of the weight."""

    def __init__(self, bias: bool) -> None:
        super().__init__("PackedProjection" + ("Bias" if bias else ""), remove_nodes=False)  # the other parts read it, too
        self.bias = bias

    def pattern(self, op, x, w, index):
        product = op.MatMul(x, w)
        packed = op.Add(product, pattern.Var("b")) if self.bias else product
        split = op.Reshape(packed, ANY, _outputs=["split"])
        turned = op.Transpose(op.Unsqueeze(split, ANY, _outputs=["wide"]), perm=[3, 1, 2, 0, 4])
        stacked = op.Squeeze(turned, ANY, _outputs=["stacked"])
        return op.Gather(stacked, index, axis=0, _outputs=["part"])

    def check(self, context, x, w, index, split, wide, stacked, b=None, **_):
        result = pattern.MatchResult()
        if w.const_value is None or len(w.const_value.shape) != 2 or (b is not None and b.const_value is None):
            return result.fail("the packed weight is not constant", w)
        if any(value.shape is None for value in (x, split, wide, stacked)) or len(x.shape) != 3 or len(split.shape) != 4:
            return result.fail("the shapes are not known", split)
        count, width = split.shape[2:]
        columns = w.const_value.shape[1]
        if not (isinstance(count, int) and isinstance(width, int) and count * width == columns):
            return result.fail("the parts do not make up the projection", split)
        if b is not None and tuple(b.const_value.shape.numpy()) != (columns,):
            return result.fail("the bias is not one number per column", b)
        if not same_shape(split.shape[:2], x.shape[:2]) or not same_shape(stacked.shape, [count, *x.shape[:2], width]):
            return result.fail("the parts are not stacked as [parts, length, batch, width]", stacked)
        if wide.shape[0] != 1 or not same_shape(wide.shape[1:], split.shape):
            return result.fail("the new axis is not the first", wide)
        number = constant_number(index)
        scalar = index.const_value is not None and not len(index.const_value.shape)
        return result if scalar and number is not None and -count <= number < count else result.fail("no part is taken", index)

    def rewrite(self, op, x, w, index, split, part, b=None, **_):
        count, width = split.shape[2:]
        columns = slice(start := int(constant_number(index)) % count * width, start + width)
        product = op.MatMul(x, op.initializer(_columns(w, columns), name=f"{part.name}.weight"))
        if b is None:
            return product
        return op.Add(product, op.initializer(ir.tensor(b.const_value.numpy()[columns]), name=f"{part.name}.bias"))


def _columns(w: ir.Value, columns: slice) -> ir.TensorProtocol:
    """Some columns of a constant matrix, cut when they are read."""
    tensor: Any = w.const_value
    name, shape = f"{w.name}.{columns.start}_{columns.stop}", ir.Shape([tensor.shape[0], columns.stop - columns.start])

    def load() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(tensor.numpy()[:, columns]), name=name)

    return ir.LazyTensor(load, dtype=tensor.dtype, shape=shape, name=name)


class UnfoldedHeads(pattern.RewriteRuleClassBase):
    """[S,B,h*d] folded to [B*h,S,d] and unfolded to [B,h,S,d] again: one Reshape and one Transpose."""

    def __init__(self, folded: bool) -> None:
        super().__init__("UnfoldedHeads" + ("" if folded else "OfOne"))
        self.folded = folded  # one head is folded as it is

    def pattern(self, op, y):
        split = op.Reshape(y, ANY) if self.folded else y
        return op.Reshape(op.Transpose(split, perm=SWAP, _outputs=["turned"]), ANY, _outputs=["out"])

    def check(self, context, y, turned, out, **_):
        result = pattern.MatchResult()
        if any(v.shape is None for v in (y, turned, out)) or (len(y.shape), len(turned.shape), len(out.shape)) != (3, 3, 4):
            return result.fail("the shapes are not known", out)
        length, batch, width = y.shape
        heads, size = out.shape[1], out.shape[3]
        if not (isinstance(heads, int) and isinstance(size, int) and heads * size == width):
            return result.fail("the heads do not make up the width", out)
        if not (same_dim(turned.shape[1], length) and same_dim(turned.shape[2], size)):
            return result.fail("the heads are not folded into the batch", turned)
        return result if same_shape(out.shape, [batch, heads, length, size]) else result.fail("the heads are not unfolded", out)

    def rewrite(self, op, y, out, **_):
        sizes = op.Constant(value=ir.tensor(np.array([0, 0, out.shape[1], out.shape[3]], np.int64)))
        return op.Transpose(op.Reshape(y, sizes), perm=[1, 2, 0, 3])


RULES: list[pattern.RewriteRule] = [
    *(SplitConstant.rule(count) for count in (2, 3)),
    *(PackedProjection.rule(bias) for bias in (True, False)),
    *(UnfoldedHeads.rule(folded) for folded in (True, False)),
]
