"""Check that an engine has all the weights of its graph: bytes by the builder's log against bytes of the graph."""

from __future__ import annotations

import collections
import hashlib
import re
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from ...core import BuildFailed
from ...graph import Graph
from .kernel_log import INTEGERS, MOVING, Kernel

_STORED = re.compile(r"Total Weights Memory: (\d+) bytes")
SHORTFALL = 0.01
_UNIFORM_LIMIT = 2**20
_RETYPING = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})
_PICKING = frozenset({"Gather", "Slice", "Split", "GatherElements", "GatherND"})
_PLACING = frozenset({"Concat", "Pad"})
_AFFINE = frozenset({"Mul", "Add"})
_TAKING = frozenset({"Conv", "ConvTranspose", "Gemm"})  # that a factor and a shift behind them become part of


def constant_bytes(kernels: Sequence[Kernel]) -> int:
    """Bytes of floating and quantised constants the engine holds, each name once; of the profile that holds the fewest.

    Integer constants are indices and shapes, which the builder folds and makes up as it likes: they are not counted. The list
    repeats every constant for every profile (`..._myl0`, `..._myl1`), so profiles are never added up.
    """
    found: dict[int, dict[str, int]] = collections.defaultdict(dict)
    for kernel in kernels:
        for tensor in kernel.constants:
            if tensor.dtype not in INTEGERS:
                found[kernel.profile][tensor.name] = tensor.nbytes
    profiles = {kernel.profile for kernel in kernels}
    return min((sum(found[profile].values()) for profile in profiles), default=0)


def stored_bytes(log: str) -> int | None:
    """Bytes of weights the builder says it stored (`Total Weights Memory`), None when it does not say."""
    sizes = _STORED.findall(log)
    return int(sizes[-1]) if sizes else None


def check_constants(graph: Graph, kernels: Sequence[Kernel], stored: int) -> dict[str, Any]:
    """{"constant_bytes", "stored_bytes", "initializer_bytes", "constant_ratio"}: the engine's weights against the graph's.

    stored: stored_bytes(log), or the size of the plan file where the builder does not say. Both it and the list must hold the
    weights: a weight that two layers share is listed twice, under two names, but stored once. On real encoders both ratios are
    1.0000 (merged QKV weights are one constant of the same size), so a shortfall over 1 % means lost weights: six layers once got
    the weights of one and every kernel count looked right. Never below 1 by right, but above it where the builder pads (a
    convolution of one channel becomes one of eight). Raises BuildFailed.
    """
    listed, expected = constant_bytes(kernels), expected_bytes(graph)
    held = min(listed, stored)
    ratio = held / expected if expected else 1.0
    if ratio < 1 - SHORTFALL:
        raise BuildFailed(
            f"the graph has {expected} bytes of weights, the engine {held} ({ratio:.1%}): weights were dropped or wrongly shared "
            "by layers; inline every local function and give every node and weight its own name"
        )
    return {"constant_bytes": listed, "stored_bytes": stored, "initializer_bytes": expected, "constant_ratio": round(ratio, 6)}


def expected_bytes(graph: Graph) -> int:
    """Bytes of weights an honest engine cannot do without, in the types the graph computes with; a lower bound.

    Left out, because builders rightly drop them: initializers nothing uses; integers (indices, shapes); those of one value (zero
    biases, LayerNorm weights of ones); tables read at constant positions, which are folded to the rows read; equal copies; the
    factors and shifts of what was scaled or shifted just before, which make one factor and one shift with those; the numbers of a
    BatchNormalization that become its one factor and one shift, or part of the convolution before it.
    """
    seen: set[str] = set()
    total = 0
    for value in graph.model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or not value.uses() or tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL):
            continue
        if is_uniform(tensor) or _is_folded(value) or _is_joined(value) or _is_normalising(value):
            continue
        digest = hashlib.sha256(tensor.tobytes()).hexdigest()
        total += 0 if digest in seen else -(-tensor.size * _narrowest(value, tensor.dtype.bitwidth) // 8)
        seen.add(digest)
    return total


def is_uniform(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor holds one value; a large one is not looked at."""
    if tensor.size <= 1 or tensor.nbytes > _UNIFORM_LIMIT:
        return tensor.size <= 1
    array = tensor.numpy()
    return bool((array == array.flat[0]).all())


def _is_folded(value: ir.Value) -> bool:
    """Whether all its readers pick constant parts of it."""
    return all(user.op_type in _PICKING and _is_constant(user.inputs[1:]) for user in value.consumers())


def _is_joined(value: ir.Value) -> bool:
    """Whether all its readers scale or shift, channel by channel, what was scaled or shifted so just before."""
    return _is_vector(value) and all(_is_affine(user) and _is_affine(_data(user).producer()) for user in value.consumers())


def _is_normalising(value: ir.Value) -> bool:
    """Whether all its readers are BatchNormalizations that leave nothing of it: mean and variance go into factor and shift, the
    factor into the weights of a convolution before it, and the shift into its bias."""
    return all(node.op_type == "BatchNormalization" and index in _given_up(node) for node, index in value.uses())


def _given_up(node: ir.Node) -> tuple[int, ...]:
    """Which inputs of a BatchNormalization (scale 1, shift 2, mean 3, variance 4) the engine need not hold."""
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    if before is None or before.op_type not in _TAKING or len(before.outputs[0].uses()) > 1:
        return (3, 4)
    return (1, 2, 3, 4) if len(before.inputs) > 2 and before.inputs[2] is not None else (1, 3, 4)


def _is_affine(node: ir.Node | None) -> bool:
    return node is not None and node.op_type in _AFFINE and sum(v is not None and _is_vector(v) for v in node.inputs) == 1


def _is_vector(value: ir.Value) -> bool:
    """A constant of one number a channel."""
    tensor = value.const_value
    return value.is_initializer() and tensor is not None and len(tensor.shape) > 0 and tensor.size == tensor.shape[-1]


def _data(node: ir.Node) -> ir.Value:
    """What an affine node scales or shifts."""
    return next(v for v in node.inputs if v is not None and not _is_vector(v))


def _is_constant(values: Sequence[ir.Value | None]) -> bool:
    return all(v is None or v.const_value is not None or _made_by_constant(v) for v in values)


def _made_by_constant(value: ir.Value) -> bool:
    maker = value.producer()
    return maker is not None and maker.op_type == "Constant"


def _narrowest(value: ir.Value, bits: int) -> int:
    """Bits an element may shrink to before a node computes with it: through casts, Q/DQ pairs, moves and picks (a table of words
    is kept quantised where all that is read of it is quantised)."""
    chain = [value]
    for step in chain:
        users = list(step.consumers())
        through = [u.outputs[0] for u in users if u.op_type in _RETYPING | MOVING | _PICKING | _PLACING]
        if len(through) == len(users):
            chain.extend(through)
    return min([bits, *(v.dtype.bitwidth for v in chain if v.dtype is not None)])
