"""Numbers that half precision has no place for, as their author wrote them: in float32 they have one again.

sqrt(2) is 1.4140625 in float16, and a Gelu with that is no Gelu. The lowest number, which masks a score, is -65504 in float16:
added to a score it swallows the score, as float32's own lowest does in float32, and -65504 does not. Weights are not touched.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

KNOWN = (math.sqrt(2), math.sqrt(0.5), math.sqrt(2 / math.pi), 0.044715, 1.702)  # of the Gelus
LOWEST = {ir.DataType.FLOAT16: -65504.0}  # bfloat16 reaches as far as float32


def restored(tensor: ir.TensorProtocol) -> np.ndarray:
    """The float32 array of a half-precision constant: exactly its numbers, but for those that rounding took from the author."""
    stored = tensor.numpy()
    array = stored.astype(np.float32)
    lowest = LOWEST.get(tensor.dtype)
    if lowest is not None and (masked := array == lowest).any() and not array[~masked].any():
        array[masked] = np.finfo(np.float32).min
    if array.size == 1:
        known = next((number for number in KNOWN if np.asarray(number, stored.dtype) == stored.reshape(-1)[0]), None)
        array = array if known is None else np.full(array.shape, known, np.float32)
    return array
