"""Shape clean-up before matching: one spelling for what exporters write in many, or no rule would match.

onnx_ir and onnxscript passes in a fixed order, with a few small rewrites between them. Weights are neither copied nor changed:
folding is bound to tensors of `FOLD_LIMIT` elements, a transposed weight is a LazyTensor, equal initializers are stored once.

Two things change numbers, both only on rows that attend to nothing: `-inf` in a mask becomes `LOW`. Such a row is the mean of
the values afterwards; before, torch's IsNaN tail made it 0 and eager attention made it NaN. Every other row keeps its bits:
exp(LOW) is 0 as exp(-inf) is, in fp32 and in fp16.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.rewriter import RewriteRuleSet, pattern

from . import projections
from .dims import constant_number, same_shape, share_dims, unify_dims
from .folding import FOLD_LIMIT, fold_small
from .inference_log import in_one_line
from .io_names import restore_io
from .model import Graph
from .provenance import keep_origins, uniting_origins
from .scopes import eliminate_identities, name_apart, within_one_graph

# What stands for -inf in a mask: fits fp16 with room for a negative score (reference/kernels.md), and exp(LOW) is 0.
MASK_LOW = -30000.0
# Each round can uncover the next (a dead Shape keeps a Transpose from being merged); real graphs settle in two or three.
ROUNDS = 5
# Ops that a mask passes on its way to the softmax.
CARRIES_MASK = frozenset({"Add", "Expand", "Unsqueeze", "Squeeze", "Reshape", "Slice", "Transpose", "Identity", "Cast"})


def normalize(graph: Graph) -> Graph:
    """A copy of `graph` in which equal things are spelled equally. Node metadata is kept."""
    copy = graph.copy()
    model = copy.model
    name_apart(model)  # a branch of an If that is known is moved into the graph around it
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    infer_shapes(model)
    rules = RewriteRuleSet([uniting_origins(within_one_graph(rule)) for rule in RULES])
    for _ in range(ROUNDS):
        changed = _settle(model)
        changed |= bool(rules.apply_to_model(model))
        changed |= share_dims(model)
        common.RemoveUnusedNodesPass()(model)
        if not changed:
            break
    restore_io(model, graph.model)
    deduplicate_initializers(model)
    with keep_origins(model.graph):
        common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    name_apart(model)
    return copy


def finite_masks(model: ir.Model) -> None:
    """-inf in masks becomes LOW, in place: PyTorch's attention gives 0 for a row that attends to nothing, and Softmax NaN."""
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    RewriteRuleSet([uniting_origins(FiniteMask.rule(first)) for first in (False, True)]).apply_to_model(model)


def _settle(model: ir.Model) -> bool:
    before = len(model.graph)
    with keep_origins(model.graph):
        _reduce(model)
    infer_shapes(model)
    return len(model.graph) != before


def _reduce(model: ir.Model) -> None:
    fold_small(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    eliminate_identities(model)
    common.DeduplicateInitializersPass(size_limit=FOLD_LIMIT)(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)


def infer_shapes(model: ir.Model, loose: frozenset[str] = frozenset()) -> dict[str, str | int]:
    """Shapes of every value, and one name for equal dims; what became of the `loose` names of inputs (`unify_dims`)."""
    in_one_line()
    common.ShapeInferencePass(data_prop=True)(model)
    return unify_dims(model, loose)


def deduplicate_initializers(model: ir.Model, made: bool = False) -> int:
    """Store equal initializers once (ALBERT's shared layers); returns how many were removed.

    A few elements are compared first, all of them only where these agree: most weights are read in a few pages. `made`: those too
    that a fusion or a lowering makes of others when they are read (q, k and v side by side, of every layer alike).
    """
    removed = 0
    seen: dict[tuple[Any, ...], list[ir.Value]] = {}
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING or (isinstance(tensor, ir.LazyTensor) and not made):
            continue
        if value.is_graph_input() or value.is_graph_output():
            continue
        array = tensor.numpy().reshape(-1)
        key = (tensor.dtype, tuple(tensor.shape.numpy()), array[:: max(1, array.size // 16)].tobytes())
        twin = next((v for v in seen.get(key, ()) if _same_bytes(v.const_value, array)), None)
        if twin is None:
            seen.setdefault(key, []).append(value)
            continue
        value.replace_all_uses_with(twin)
        model.graph.initializers.pop(str(value.name))
        removed += 1
    return removed


def _same_bytes(tensor: Any, array: np.ndarray) -> bool:
    other = tensor.numpy().reshape(-1)
    return other is array or bool(np.array_equal(other.view(np.uint8), array.view(np.uint8)))


def lazy_transpose(value: ir.Value) -> ir.TensorProtocol:
    """A constant matrix transposed when it is read."""
    tensor = value.const_value
    rows, columns = tensor.shape
    name = f"{value.name}.transposed"

    def load() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(tensor.numpy().T), name=name)

    return ir.LazyTensor(load, dtype=tensor.dtype, shape=ir.Shape([columns, rows]), name=name)


class SwapLastTwo(pattern.RewriteRuleClassBase):
    """Reshape to 3-D, swap, reshape back, as torch's sdpa writes the transposed keys: one Transpose."""

    def pattern(self, op, x):
        flat = op.Reshape(x, pattern.ANY_VALUE, _outputs=["flat"])
        swapped = op.Transpose(flat, perm=[0, 2, 1])
        return op.Reshape(swapped, pattern.ANY_VALUE, _outputs=["out"])

    def check(self, context, x, flat, out, **_):
        result = pattern.MatchResult()
        if any(v.shape is None for v in (x, flat, out)) or not len(x.shape) == len(out.shape) == 4:
            return result.fail("the shapes are not known", x)
        if not same_shape(flat.shape[1:], x.shape[2:]):
            return result.fail("the first reshape does not keep the last two dims", flat)
        if not same_shape(out.shape, [*x.shape[:2], x.shape[3], x.shape[2]]):
            return result.fail("the last reshape does not swap the last two dims", out)
        return result

    def rewrite(self, op, x, **_):
        return op.Transpose(x, perm=[0, 1, 3, 2])


class MergeTransposes(pattern.RewriteRuleClassBase):
    """Transpose of a Transpose: one, or none."""

    def pattern(self, op, x):
        return op.Transpose(op.Transpose(x, _outputs=["inner"]), _outputs=["outer"])

    def check(self, context, inner, outer, **_):
        result = pattern.MatchResult()
        if _perm(inner) is None or _perm(outer) is None:
            return result.fail("a Transpose has no perm and no known rank", outer)
        return result

    def rewrite(self, op, x, inner, outer, **_):
        first, second = _perm(inner), _perm(outer)
        perm = [first[i] for i in second]
        return op.Identity(x) if perm == sorted(perm) else op.Transpose(x, perm=perm)


def _perm(value: ir.Value) -> list[int] | None:
    attribute = value.producer().attributes.get("perm")
    if attribute is not None:
        return list(attribute.as_ints())
    return list(reversed(range(len(value.shape)))) if value.shape is not None else None


class TransposedWeight(pattern.RewriteRuleClassBase):
    """Transpose of a constant matrix: the matrix, transposed when it is read."""

    def pattern(self, op, w):
        return op.Transpose(w, _outputs=["out"])

    def check(self, context, w, out, **_):
        result = pattern.MatchResult()
        if w.const_value is None or len(w.const_value.shape) != 2 or _perm(out) != [1, 0]:
            return result.fail("not a transposed constant matrix", w)
        return result

    def rewrite(self, op, w, out, **_):
        # The value's own name: two uses of one weight at two places must not claim one initializer name.
        return op.Identity(op.initializer(lazy_transpose(w), name=f"{out.name}.weight"))


class SumOfChannels(pattern.RewriteRuleClassBase):
    """A sum of [B,C,S] that is normalised over its channels: transposed term by term, so that the norm finds its residual sum.

    SqueezeBERT keeps [B,C,S] between its norms: the transposition of the term that a norm made undoes the one behind it.
    """

    def pattern(self, op, a, b, gamma):
        turned = op.Transpose(op.Add(a, b), perm=[0, 2, 1])
        return op.LayerNormalization(turned, gamma, pattern.Var("beta", can_match_none=True), _outputs=["out"])

    def check(self, context, a, b, **_):
        result = pattern.MatchResult()
        known = all(v.shape is not None and len(v.shape) == 3 for v in (a, b))
        return result if known else result.fail("the terms are not known to be of rank 3", a)

    def rewrite(self, op, a, b, gamma, out, beta=None, **_):
        total = op.Add(*(op.Transpose(value, perm=[0, 2, 1]) for value in (a, b)))
        attributes = {name: attribute.value for name, attribute in out.producer().attributes.items()}
        return op.LayerNormalization(total, gamma, beta, **attributes)


class Unchanged(pattern.RewriteRuleClassBase):
    """Reshape, Expand or Slice whose result has the shape of its input."""

    def __init__(self, op_type: str) -> None:
        super().__init__(f"Unchanged{op_type}")
        self.op_type = op_type

    def pattern(self, op, x):
        return getattr(op, self.op_type)(x, _allow_other_inputs=True, _outputs=["out"])

    def check(self, context, x, out, **_):
        result = pattern.MatchResult()
        if not same_shape(x.shape, out.shape):
            return result.fail("the shape changes, or is not known", out)
        steps = out.producer().inputs[4:5] if self.op_type == "Slice" else ()
        if any(s is not None and (s.const_value is None or (s.const_value.numpy() < 0).any()) for s in steps):
            return result.fail("the steps may run backwards", out)
        return result

    def rewrite(self, op, x, **_):
        return op.Identity(x)


class UnchangedCast(pattern.RewriteRuleClassBase):
    """Cast to the type its input has."""

    def pattern(self, op, x, to):
        return op.Cast(x, to=to)

    def check(self, context, x, to, **_):
        result = pattern.MatchResult()
        return result if x.dtype is not None and x.dtype.value == to.as_int() else result.fail("the type changes", x)

    def rewrite(self, op, x, **_):
        return op.Identity(x)


class FiniteMask(pattern.RewriteRuleClassBase):
    """Where(keep, a, -inf) that ends in softmaxes alone: -inf becomes LOW (see the module's docstring)."""

    def __init__(self, low_first: bool) -> None:
        super().__init__("FiniteMask" + ("LowFirst" if low_first else ""))
        self.low_first = low_first

    def pattern(self, op, keep, a, low):
        return op.Where(keep, *((low, a) if self.low_first else (a, low)), _outputs=["out"])

    def check(self, context, low, out, **_):
        result = pattern.MatchResult()
        if constant_number(low) != -math.inf:
            return result.fail("not -inf", low)
        return result if _ends_in_softmax(out) else result.fail("the mask is used outside a softmax", out)

    def rewrite(self, op, keep, a, low, **_):
        finite = op.Constant(value=ir.tensor(np.full(low.const_value.shape.numpy(), MASK_LOW, low.const_value.numpy().dtype)))
        return op.Where(keep, *((finite, a) if self.low_first else (a, finite)))


class BiasedMask(pattern.RewriteRuleClassBase):
    """Where(keep, bias, low) that ends in softmaxes alone: bias + Where(keep, 0, low), so that all layers can share the mask.

    T5's sdpa fills its relative positions so. Beside a low of -1e30 or less float32 loses the bias, so no bit changes; beside LOW
    only a row that attends to nothing would tell.
    """

    def pattern(self, op, keep, bias, low):
        return op.Where(keep, bias, low, _outputs=["out"])

    def check(self, context, bias, low, out, **_):
        result = pattern.MatchResult()
        lowest = constant_number(low)
        if lowest is None or not (lowest <= -1e30 or lowest == MASK_LOW):
            return result.fail("not the low of a mask", low)
        if bias.shape is None or len(bias.shape) != 4 or constant_number(bias) is not None or bias.shape[1] == 1:
            return result.fail("what is kept is not a bias of each head", bias)
        return result if _ends_in_softmax(out) else result.fail("the mask is used outside a softmax", out)

    def rewrite(self, op, keep, bias, low, **_):
        zero = op.Constant(value=ir.tensor(np.zeros((), bias.dtype.numpy())))
        return op.Add(bias, op.Where(keep, zero, low))


class MaskedFill(pattern.RewriteRuleClassBase):
    """x[mask] = number, which exporters spell ScatterND at NonZero(mask): a Where. TensorRT-RTX has no NonZero."""

    def __init__(self) -> None:
        super().__init__("MaskedFill", remove_nodes=False)  # the places are counted, too, to spread the number over them

    def pattern(self, op, x, mask, updates):
        return op.ScatterND(x, op.Transpose(op.NonZero(mask), perm=[1, 0]), updates)

    def check(self, context, x, mask, updates, **_):
        result = pattern.MatchResult()
        if not same_shape(x.shape, mask.shape):
            return result.fail("the mask is not of the shape of what it fills", mask)
        made = updates.producer()
        if made is None or made.op_type != "Expand" or constant_number(made.inputs[0]) is None:
            return result.fail("the filling is not one number", updates)
        return result

    def rewrite(self, op, x, mask, updates, **_):
        filling = constant_number(updates.producer().inputs[0])
        return op.Where(mask, op.Constant(value=ir.tensor(np.array(filling, x.dtype.numpy()))), x)


class FlatSoftmax(pattern.RewriteRuleClassBase):
    """Flatten up to the last axis, Softmax, Reshape back, as onnx's converter writes a Softmax of opset 12: the Softmax alone."""

    def pattern(self, op, x):
        flat = op.Softmax(op.Flatten(x, _outputs=["flat"]), _outputs=["softmax"])
        return op.Reshape(flat, op.Shape(x, _outputs=["sizes"]))

    def check(self, context, x, flat, softmax, sizes, **_):
        result = pattern.MatchResult()
        axes = [value.producer().attributes.get("axis") for value in (flat, softmax)]
        before, of_softmax = (axis.as_int() if axis is not None else default for axis, default in zip(axes, (1, -1), strict=True))
        if x.shape is None or before not in (-1, len(x.shape) - 1) or of_softmax not in (-1, 1):
            return result.fail("the softmax is not over the last axis alone", flat)
        return result.fail("not the whole shape", sizes) if sizes.producer().attributes else result

    def rewrite(self, op, x, **_):
        return op.Softmax(x, axis=-1)


def _ends_in_softmax(value: ir.Value) -> bool:
    uses = [node for node, _ in value.uses()]
    if not uses or value.is_graph_output():
        return False
    return all(n.op_type == "Softmax" or (n.op_type in CARRIES_MASK and _ends_in_softmax(n.outputs[0])) for n in uses)


RULES: list[pattern.RewriteRule] = [
    SwapLastTwo.rule(),
    MergeTransposes.rule(),
    TransposedWeight.rule(),
    *projections.RULES,
    SumOfChannels.rule(),
    *(Unchanged.rule(op_type) for op_type in ("Reshape", "Expand", "Slice")),
    UnchangedCast.rule(),
    MaskedFill.rule(),
    FlatSoftmax.rule(),
    FiniteMask.rule(False),
    FiniteMask.rule(True),
    BiasedMask.rule(),
]
