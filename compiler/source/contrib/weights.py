"""Products and lookups over weights stored in blocks of a few bits: the same over float32 weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...core import InputError
from ...ops import add_all, padded_inputs
from . import _blocks as blocks

UNPACKED = {ir.DataType.INT4, ir.DataType.UINT4}


def _constant(value: ir.Value | None) -> np.ndarray | None:
    """Raises InputError for an input that is not constant; None for an absent one."""
    if value is None:
        return None
    if value.const_value is None:
        raise InputError(f"its input {value.name!r} is not constant")
    return value.const_value.numpy()


def matmul_nbits(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """(a, packed, scales, zeros?, group index?, bias?; K, N, bits, block_size) -> a W + bias"""
    a, packed, scales, zeros, groups, bias, *_ = padded_inputs(node, 7)
    if groups is not None:
        raise InputError("a group index (g_idx) has no expansion")
    shape = node.attributes.get_int("K"), node.attributes.get_int("N")
    bits, block = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size")
    if bits not in (2, 4, 8):
        raise InputError(f"bits={bits} has no expansion, only 2, 4 and 8")
    values: list[Any] = [_constant(each) for each in (packed, scales, zeros)]
    matrix = blocks.block_matrix(values[0], values[1], values[2], shape, block, bits)
    return [add_all(op, op.MatMul(a, op.initializer(ir.tensor(matrix), name="weight")), bias)]


def matmul_bnb4(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """(a, packed, absmax; K, N, block_size, quant_type) -> a W"""
    a, packed, largest = padded_inputs(node, 3)[:3]
    shape = node.attributes.get_int("K"), node.attributes.get_int("N")
    block, kind = node.attributes.get_int("block_size"), node.attributes.get_int("quant_type", 1)
    if not node.attributes.get_int("transB", 1):
        raise InputError("transB=0 has no expansion")
    values: list[Any] = [_constant(each) for each in (packed, largest)]
    matrix = blocks.bnb4_matrix(values[0], values[1], shape, block, kind)
    return [op.MatMul(a, op.initializer(ir.tensor(matrix), name="weight"))]


def gather_block_quantized(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """(data, indices, scales, zeros?; gather_axis, quantize_axis, block_size, bits) -> rows of the table in float32"""
    data, indices, scales, zeros = padded_inputs(node, 4)[:4]
    bits = node.attributes.get_int("bits", 4)
    table, zero = _constant(data), _constant(zeros)
    assert table is not None and data is not None
    by_bytes = data.const_value.dtype not in UNPACKED
    if by_bytes and bits < 8:
        table = blocks.unpacked(table.view(np.uint8), bits)
        zero = None if zero is None else blocks.unpacked(zero.view(np.uint8), bits)
    axis = node.attributes.get_int("quantize_axis", 1) % table.ndim
    default = 2 ** (bits - 1) if by_bytes else 0
    made = blocks.block_table(
        table, _constant(scales), zero, axis, node.attributes.get_int("block_size", 128), default  # type: ignore[arg-type]
    )  # fmt: skip
    weight = op.initializer(ir.tensor(made), name="table")
    return [op.Gather(weight, indices, axis=node.attributes.get_int("gather_axis", 0))]


BODIES = {"MatMulNBits": matmul_nbits, "MatMulBnb4": matmul_bnb4, "GatherBlockQuantized": gather_block_quantized}
