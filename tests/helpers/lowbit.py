"""An encoder of one layer, wide enough for low-bit kernels, with a tokenizer and texts: help for the tests of low-bit builds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import tiny
from onnx import TensorProto, numpy_helper

WORDS = ("two", "words", "and", "more")


def encoder(folder: Path, width: int = 32) -> Path:
    """tiny.encoder at another width."""
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal((width, width)) / np.sqrt(width) for name in ("wq", "wk", "wv", "wo")}
    values |= {"table": rng.standard_normal((tiny.VOCABULARY, width)), "gamma": np.ones(width), "beta": np.zeros(width)}
    values |= {"scale": np.array(width**-0.5), "low": np.array(-1e9), "one": np.array(1.0)}
    arrays = {name: np.asarray(array, np.float32) for name, array in values.items()} | {"axes": np.array([1], np.int64)}
    inputs = [oh.make_tensor_value_info(name, TensorProto.INT64, tiny.DIMS) for name in ("input_ids", "attention_mask")]
    output = oh.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, (*tiny.DIMS, width))
    graph = oh.make_graph(tiny.nodes(), "low", inputs, [output], [numpy_helper.from_array(a, n) for n, a in arrays.items()])
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), folder / "m.onnx")
    tiny.write_tokenizer(folder)
    return folder / "m.onnx"


def texts(path: Path, count: int = 120) -> Path:
    rng = np.random.default_rng(1)
    path.write_text("\n".join(" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(count)), "utf-8")
    return path


def relative(path: Path, source: Path) -> float:
    """The error of an artifact against its source, relative, on feeds that neither was made for."""
    import onnxruntime as ort

    import bertc

    feeds = tiny.feeds(3, 7)
    session = ort.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    wanted = np.asarray(session.run(["last_hidden_state"], feeds)[0])
    return float(np.linalg.norm(bertc.load(path).run(feeds)["last_hidden_state"] - wanted) / np.linalg.norm(wanted))
