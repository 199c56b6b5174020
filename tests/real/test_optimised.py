"""Files of ONNX Runtime's transformers optimiser: its fused operators are taken apart, and fused again for every target."""

from __future__ import annotations

import brought
import numpy as np
import onnx
import pytest
from onnxruntime.transformers import optimizer


# Half weights: as far as their rounding puts them.
@pytest.mark.parametrize(
    ("io", "limit"), [(None, 1e-5), (True, 5e-3), (False, 5e-3)], ids=["float", "half", "half at the borders"]
)
def test_it_is_built_as_the_model_before(io, limit, traced, feeds, truth, tmp_path):
    made = optimizer.optimize_model(str(traced), "bert", num_heads=4, hidden_size=64, opt_level=0)
    if io is not None:
        made.convert_float_to_float16(keep_io_types=io)
    made.save_model_to_file(str(tmp_path / "o.onnx"))
    inside = {node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node if node.domain == "com.microsoft"}
    assert {"Attention", "SkipLayerNormalization"} <= inside
    built = brought.build(tmp_path / "o.onnx", tmp_path / "out")
    assert built.code == 0, built.said
    assert built.fusions()["attention"] == 2
    assert brought.off(brought.answers(built.graph(), feeds)["logits"], truth) < limit
    got = brought.answers(built.graph(brought.FLOAT16), feeds)["logits"]
    assert brought.off(got.astype(np.float32), truth) < brought.LIMITS[brought.FLOAT16]
