"""Shared by the lowerings: packed weights cut apart, heads padded to a width, constants, transpositions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ops import padded_inputs

SWAP = (1, 0, 2)  # [B,S,H] <-> [S,B,H]

# The fused attention kernel reads heads in place only where they are aligned. Others are made wider by zeros in the weights,
# which changes no score and no result, where that makes them no more than so many times as wide (26 of TinyBERT: 32).
ALIGNED = 8
WIDER = 1.34
LARGEST = 257  # TensorRT-RTX 1.7 fuses attention with heads of 256 and not of 264
TURING = "sm75"


def attend_and_project(
    op: Any, node: ir.Node, parts: Parts, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None, bias: np.ndarray | None
) -> ir.Value:
    """softmax(q k + mask) v, heads merged, projected; the bias rides in the add-and-norm kernel behind it."""
    scores = op.MatMul(q, k)
    scores = scores if mask is None else op.Add(scores, mask)
    context = op.Transpose(op.MatMul(op.Softmax(scores, axis=-1), v), perm=(2, 0, 1, 3))
    merged = op.Reshape(context, constant(op, node, "merge", np.array([0, 0, parts.heads * parts.width], np.int64)))
    y = op.MatMul(merged, parts.out(op))
    return op.Transpose(y if bias is None else op.Add(y, constant(op, node, "out_bias", bias)), perm=SWAP)


class Parts:
    """The packed weights of a FusedAttention taken apart again, with the scale and the biases where they cost least.

    `size` of a head; `width` is what it is made by zeros, the first of `widths` that it fits in and that is not far from it.
    """

    def __init__(self, node: ir.Node, widths: Iterable[int] = ()) -> None:
        _, _, w, b, wo, bo = padded_inputs(node, 6)[:6]
        self.w, self.b, self.wo, self.bo, self.prefix = w, b, wo, bo, str(node.name)
        self.heads = node.attributes["num_heads"].as_int()
        self.scale = np.float32(node.attributes.get_float("scale", 1.0))
        self.size = int(w.shape[1]) // 3 // self.heads
        self.width = next((wide for wide in widths if self.size <= wide <= WIDER * self.size), self.size)

    def weight(self, op: Any, name: str) -> ir.Value:
        """Wq (scaled), Wk, Wv or all three, cut out when they are read: the source holds them already."""

        tensor = self.w.const_value  # not the value, which is without it while a shape inference runs and reads this

        def load() -> np.ndarray:
            array = tensor.numpy()
            width = array.shape[1] // 3
            if name == "qkv":
                return self._widened(np.concatenate([array[:, :width] * self.scale, array[:, width:]], axis=1))
            part = array[:, "qkv".index(name) * width :][:, :width]
            return self._widened(part * self.scale if name == "q" else part)

        return lazy_weight(op, f"{self.prefix}/W{name}", (int(self.w.shape[0]), len(name) * self.heads * self.width), load)

    def out(self, op: Any) -> ir.Value:
        """Wo, with rows of zeros for what heads are wider by."""
        if self.width == self.size:
            return self.wo
        shape, tensor = (self.heads * self.width, int(self.wo.shape[1])), self.wo.const_value
        return lazy_weight(op, f"{self.prefix}/Wo", shape, lambda: self._widened(tensor.numpy().T).T)

    def _widened(self, array: np.ndarray) -> np.ndarray:
        """[..., heads * size] with zeros behind the numbers of each head; of q, k and v together, too."""
        if self.width == self.size:
            return array
        apart = array.reshape(*array.shape[:-1], -1, self.size)
        wide = np.pad(apart, [(0, 0)] * (apart.ndim - 1) + [(0, self.width - self.size)])
        return wide.reshape(*array.shape[:-1], -1)

    def query_bias(self) -> np.ndarray | None:
        """bq * scale, None where it is absent or zero."""
        if self.b is None:
            return None
        bias = np.split(self.b.const_value.numpy(), 3)[0] * self.scale
        return self._widened(bias) if bias.any() else None

    def packed_bias(self) -> np.ndarray:
        q, k, v = np.split(self.b.const_value.numpy(), 3)
        return self._widened(np.concatenate([q * self.scale, k, v]))

    def output_bias(self) -> np.ndarray | None:
        """bo + bv @ Wo (`folded_bias`)."""
        return folded_bias(None if self.b is None else np.split(self.b.const_value.numpy(), 3)[2], self.wo, self.bo)


def lazy_weight(op: Any, name: str, shape: Sequence[int], load: Callable[[], np.ndarray]) -> ir.Value:
    """A float32 initializer that is computed when it is read: the source holds the weights it is cut from already."""

    def tensor() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(load()))

    lazy = ir.LazyTensor(tensor, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name, cache=False)
    return op.initializer(lazy, name=name)


def folded_bias(value_bias: np.ndarray | None, wo: Any, bo: Any) -> np.ndarray | None:
    """bo + bv @ Wo, in float64 until it is stored: the rows of a softmax sum to 1, so the value's bias passes through it."""
    bias = None if bo is None else bo.const_value.numpy()
    if value_bias is None or not value_bias.any():
        return bias
    folded = value_bias.astype(np.float64) @ wo.const_value.numpy().astype(np.float64)
    return (folded if bias is None else bias + folded).astype(np.float32)


def present(*values: ir.Value | None) -> list[ir.Value]:
    return [value for value in values if value is not None]


def layout_swap(op: Any, *values: ir.Value) -> Callable[[ir.Value], ir.Value]:
    """Swaps batch and length where all values are known to be [B,S,H], else leaves them (a head works on [B,H])."""
    if all(value.shape is not None and len(value.shape) == 3 for value in values):
        return lambda value: op.Transpose(value, perm=SWAP)
    return lambda value: value


def constant(op: Any, node: ir.Node, name: str, array: Any) -> ir.Value:
    full = f"{node.name}/{name}"
    return op.initializer(ir.tensor(np.asarray(array), name=full), name=full)
