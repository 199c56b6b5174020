"""Q/DQ pairs that another tool put into a file, in engines of float32 and of half precision: the GEMM between them reads int8."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bertc.pipeline import build_recipe
from bertc.recipe import Recipe

pytestmark = pytest.mark.rtx

PAIRS = """<ir_version: 8, opset_import: ["" : 17]> g (float[B,T,32] x) => (float[B,T,32] y)
<float s = {0.03}, float ws = {0.01}, float hs = {0.5}> { q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)
  e = DequantizeLinear (w, ws, z) m = MatMul (d, e) r = Relu (m) hq = QuantizeLinear (r, hs, z)
  hd = DequantizeLinear (hq, hs, z) n = MatMul (hd, e) y = Add (n, b) }"""


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_gemms_between_pairs_read_int8(precision: str, tmp_path: Path) -> None:
    model, rng = onnx.parser.parse_model(PAIRS), np.random.default_rng(0)
    values = {"z": np.array(0, np.int8), "w": rng.integers(-127, 127, (32, 32)).astype(np.int8), "b": rng.normal(size=32)}
    for name, value in values.items():
        value = value if value.dtype == np.int8 else value.astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    onnx.save(model, tmp_path / "m.onnx")
    recipe = Recipe(source=str(tmp_path / "m.onnx"), targets=(f"tensorrt-rtx:sm89={precision}",))
    (made,) = build_recipe(recipe, tmp_path / "out")
    facts = json.loads((made.path / "manifest.json").read_text())
    assert facts["engine"]["gemms"]["asked"] == facts["engine"]["gemms"]["int8"] == 2
    assert facts["engine"]["gemms"]["half"] == (0 if precision == "fp32" else 2)
    assert facts["budget"]["cosine"] == (None if precision == "fp32" else 0.99)
