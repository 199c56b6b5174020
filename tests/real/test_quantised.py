"""Files that ONNX Runtime's quantisers made: they keep the file's arithmetic, or one sentence says to give the float model."""

from __future__ import annotations

import brought
import numpy as np
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process


class Rows(CalibrationDataReader):
    def __init__(self) -> None:
        rng, mask = np.random.default_rng(0), np.ones((4, 16), np.int64)
        self.left = iter([{"input_ids": rng.integers(0, 300, (4, 16)), "attention_mask": mask} for _ in range(8)])

    def get_next(self):
        return next(self.left, None)


def qdq(given, path):
    types = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8}
    quantize_static(str(given), str(path), Rows(), quant_format=QuantFormat.QDQ, per_channel=True, **types)


def dynamic(given, path):
    quantize_dynamic(str(given), str(path), weight_type=QuantType.QInt8)


def four_bits(given, path):
    import onnx

    made = MatMulNBitsQuantizer(onnx.load(given), bits=4, block_size=32, is_symmetric=True)
    made.process()
    made.model.save_model_to_file(str(path))


@pytest.fixture(scope="module")
def given(traced, tmp_path_factory):
    path = tmp_path_factory.mktemp("quantised") / "p.onnx"
    quant_pre_process(str(traced), str(path), skip_symbolic_shape=True, skip_optimization=True)
    return path


# Scores near a border of a step of the int8 grid fall on its other side when a sum is made in another order: one step is 1 %.
@pytest.mark.parametrize(("make", "limit"), [(qdq, 2e-2), (dynamic, 2e-2), (four_bits, 1e-5)])
def test_onnx_runtime_gets_what_the_file_computes(make, limit, given, feeds, truth, tmp_path):
    make(given, tmp_path / "q.onnx")
    wanted = brought.answers(tmp_path / "q.onnx", feeds, optimised=False)["logits"]
    assert brought.off(wanted, truth) > 1e-3  # quantised indeed
    built = brought.build(tmp_path / "q.onnx", tmp_path / "out", targets=["onnxruntime=fp32"])
    assert built.code == 0, built.said
    assert brought.off(brought.answers(built.graph(), feeds)["logits"], wanted) < limit


def test_weights_of_four_bits_are_fused_as_floats(given, tmp_path):
    four_bits(given, tmp_path / "q.onnx")
    built = brought.build(tmp_path / "q.onnx", tmp_path / "out", targets=["onnxruntime=fp32"])
    assert built.code == 0, built.said
    assert built.fusions()["attention"] == 2 and "12 MatMulNBits" in built.said


@pytest.mark.parametrize("words", [("--int8", "--data", "rows.npz", "--target", "onnxruntime"), ("--target", "null=fp16")])
def test_what_is_quantised_already_is_not_typed_again(words, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dynamic(given, tmp_path / "q.onnx")
    np.savez(tmp_path / "rows.npz", **{"0/input_ids": np.ones((8, 9), np.int64), "0/attention_mask": np.ones((8, 9), np.int64)})
    built = brought.build(tmp_path / "q.onnx", tmp_path / "out", *words, targets=[])
    assert built.code == 2
    assert "quantised already" in built.said and "float model" in built.said
