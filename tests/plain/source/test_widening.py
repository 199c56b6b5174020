"""A graph in half made float32: what is known of its constants is known in float32 too."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from bertc.data.mask_kinds import mask_kinds
from bertc.graph import Graph
from bertc.source.widening import widen

MASKED = """<ir_version: 10, opset_import: ["" : 20]>
g ({half}[batch,length] x, int64[batch,length] seen) => ({half}[batch,length] y)
<int64 zero = {{0}}, {half} none = {{0}}>
{{
   padding = Equal (seen, zero)
   low = Constant <value = {half} {{-29952}}> ()
   hidden = Where (padding, low, none)
   scores = Add (x, hidden)
   y = Softmax <axis = -1> (scores)
}}"""


@pytest.mark.parametrize(("half", "dtype"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_constants_that_the_exporter_knew_in_half(half, dtype):
    model = ir.from_onnx_text(MASKED.format(half=half))
    (low,) = (node.outputs[0] for node in model.graph if node.op_type == "Constant")
    (added,) = (node.outputs[0] for node in model.graph if node.op_type == "Where")
    low.producer().attributes["value"] = ir.AttrTensor("value", ir.tensor(np.array(-29952, dtype)))
    low.const_value = ir.tensor(np.array(-29952, dtype), name="low")  # as torch's exporter leaves it
    added.const_value = ir.tensor(np.zeros((1, 1), dtype), name="hidden")
    widen(model)
    assert low.const_value.dtype == ir.DataType.FLOAT
    assert low.const_value.numpy() == -29952
    assert added.const_value is None, "it is computed anew"
    assert mask_kinds(Graph(model))["seen"] == "binary"
