"""Dynamic INT8 for ONNX Runtime: weights stored as int8, the range of every activation measured while the model runs.

Nothing is calibrated, so no text is unlike the data; each GEMM pays for finding its range. ONNX Runtime's own quantiser writes
the graph: DynamicQuantizeLinear and MatMulInteger, which are standard ONNX, and which no TensorRT imports.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import onnx_ir as ir

from ..core import Missing, RecipeError, scratch
from ..graph import EXTERNAL_DATA_THRESHOLD, Graph, load_graph, save_graph
from .saturation import REDUCED

OPS = ("MatMul", "Gemm")
INTEGER = "MatMulInteger"


def dynamic_int8(graph: Graph, bits: int = 8) -> Graph:
    """A copy of a float32 graph whose GEMMs over constant weights run on integers: weights per output channel, of `bits` bits.

    Raises Missing without onnxruntime, RecipeError where no GEMM of the graph has constant weights.
    """
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise Missing(f"dynamic int8 needs onnxruntime's quantiser ({error}): pip install 'bertc[cpu]'") from error
    large = graph.initializer_bytes >= EXTERNAL_DATA_THRESHOLD
    with scratch() as folder, _quiet():
        given, made = folder / "float.onnx", folder / "int8.onnx"
        save_graph(graph, given)
        quantize_dynamic(given, made, op_types_to_quantize=list(OPS), per_channel=True, reduce_range=bits == REDUCED,
                         weight_type=QuantType.QInt8, use_external_data_format=large)  # fmt: skip
        quantised = load_graph(made)
        quantised.model.graph.sort()  # the quantiser's own order forgets what the branches of an If read
        ir.external_data.load_to_model(quantised.model)  # its file goes with the folder
    if not count_integer_gemms(quantised):
        raise RecipeError("no GEMM of the graph can be quantised: none has constant weights")
    return quantised


def count_integer_gemms(graph: Graph) -> int:
    """GEMMs that multiply integers."""
    return sum(node.op_type == INTEGER for node in graph.model.graph)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises a preprocessing on the root logger; what it would do was done by the fusions."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
