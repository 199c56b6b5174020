"""Tensors that calibration measures: inputs of GEMMs and the like, their axes, and the mask constants that reach them."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...core import DataError, did_you_mean
from ...graph import GEMM_OPS, Graph, module_path
from .statistics import MeasuredTensor

# Readers whose first two inputs are quantised, and makers whose first output is worth quantising where it is made.
READERS = GEMM_OPS | {"FusedMatMul", "MultiHeadAttention"}
MAKERS = frozenset(
    "Softmax LayerNormalization RMSNormalization SkipLayerNormalization EmbedLayerNormalization Gelu FastGelu BiasGelu".split()
)
CONVOLUTIONS = ("Conv", "ConvTranspose")
LOWEST = 1e4  # a constant of this size or more that is added to, or multiplies, what becomes scores is a mask's
# Below half of the smallest mask constant a value is the mask's: a score on top of -10000 is nearer to that than to 0.
SHARE = 0.5
FARTHEST = -1e30  # where the mask is -inf alone
CARRIES_MASK = frozenset(
    "Add Sub Mul Where Expand Unsqueeze Squeeze Reshape Flatten Cast CastLike Transpose Slice Concat Identity Max Min ReduceMax "
    "Gather GatherElements GatherND Tile ScatterND Trilu Neg Split".split()
)


def tensors_to_measure(graph: Graph, also: Sequence[str] = (), by_channel: Sequence[str] = ()) -> tuple[MeasuredTensor, ...]:
    """The tensors to measure, in the graph's order: activations that a GEMM or convolution reads, outputs of softmax,
    normalisation and GELU, both sides of a residual sum; and what the patterns of `also` name.

    `by_channel` are patterns of names or module paths (as `*.query`) that get a histogram per channel.
    Raises DataError for a pattern that names nothing, or no tensor with channels of a fixed number.
    """
    wanted = {value: None for node in graph.model.graph for value in _wanted(node)}
    order = [*graph.model.graph.inputs, *(v for node in graph.model.graph for v in node.outputs)]
    floats = [v for v in order if v.dtype is not None and v.dtype.is_floating_point()]
    for pattern in also:
        found = [v for v in floats if fnmatch.fnmatchcase(str(v.name), pattern)]
        if not found:
            raise DataError(f"no tensor is called {pattern!r}{did_you_mean(pattern, [str(v.name) for v in floats[:200]])}")
        wanted |= dict.fromkeys(found)
    cuts = _cuts(graph)
    made = [_place(value, cuts.get(value)) for value in floats if value in wanted]
    return _with_channels(made, by_channel)


def untyped_tensors(graph: Graph) -> list[str]:
    """Tensors that would be measured if their type were known; behind operators of other domains it is not."""
    return [str(v.name) for v in dict.fromkeys(v for node in graph.model.graph for v in _wanted(node)) if v.dtype is None]


def _wanted(node: ir.Node) -> Iterator[ir.Value]:
    if node.op_type in READERS:
        yield from (v for v in node.inputs[:2] if v is not None and _is_activation(v))
    if node.op_type in MAKERS:
        yield node.outputs[0]
    if node.op_type == "Add" and _is_residual(node):
        yield from (v for v in node.inputs if v is not None)


def _is_activation(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is None


def _is_residual(node: ir.Node) -> bool:
    """A sum of two activations of one shape, not the sum of scores and a mask."""
    one, two = node.inputs
    alike = _is_activation(one) and _is_activation(two) and _dims(one) == _dims(two) and len(_dims(one)) > 1
    return alike and all(user.op_type != "Softmax" for user, _ in node.outputs[0].uses())


def _dims(value: Any) -> tuple[int | str, ...]:
    shape = value.shape if value.shape is not None else ()
    return tuple(d if isinstance(d, int) else str(d.value or "?") for d in shape)


def _place(value: ir.Value, cut: float | None) -> MeasuredTensor:
    node = value.producer()
    dims = _dims(value)
    last = 1 if any(user.op_type in CONVOLUTIONS for user, _ in value.uses()) else len(dims) - 1
    axis = last if 0 < last < len(dims) and isinstance(dims[last], int) and int(dims[last]) > 1 else None
    op, module = (node.op_type, module_path(node)) if node is not None else ("input", "")
    return MeasuredTensor(str(value.name), op, module, dims, axis, cut)


def _with_channels(made: Sequence[MeasuredTensor], patterns: Sequence[str]) -> tuple[MeasuredTensor, ...]:
    chosen = set()
    for pattern in patterns:
        found = {p.name for p in made if any(fnmatch.fnmatchcase(text, pattern) for text in (p.name, p.module))}
        if not found:
            raise DataError(f"no measured tensor or module is called {pattern!r}{did_you_mean(pattern, [p.name for p in made])}")
        if not any(p.channels for p in made if p.name in found):
            raise DataError(f"no ranges per channel of {pattern!r}: the last axis of these tensors has no fixed size")
        chosen |= found
    return tuple(dataclasses.replace(p, by_channel=bool(p.channels) and p.name in chosen) for p in made)


def _cuts(graph: Graph) -> dict[ir.Value, float]:
    """For each value that a mask constant can reach unchanged, at most below what number it is the mask's."""
    nearest_zero: dict[ir.Value, float] = {}
    for node in graph.model.graph:
        if node.op_type not in CARRIES_MASK:
            continue
        table = node.op_type.startswith("Gather")  # a constant that is looked up is an embedding
        found = [low for v in node.inputs if v is not None and (low := nearest_zero.get(v) or (None if table else _low(v)))]
        for value in node.outputs if found else ():
            nearest_zero[value] = max(found)
    return {value: max(low * SHARE, FARTHEST) for value, low in nearest_zero.items()}


def _low(value: ir.Value) -> float | None:
    """Minus the smallest magnitude of the mask constants in a constant; None where it holds none.

    The sign does not matter: (mask - 1) * 1e9 and (1 - mask) * -1e9 are one.
    """
    if value.const_value is None or value.dtype is None or not value.dtype.is_floating_point():
        return None
    magnitudes = np.abs(value.const_value.numpy().astype(np.float32, copy=False))
    large = magnitudes[magnitudes >= LOWEST]
    return -float(large.min()) if large.size else None
