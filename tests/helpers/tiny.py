"""A BERT-like encoder of one layer in an .onnx file: builds in a moment, with no PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
from onnx import TensorProto, numpy_helper

VOCABULARY, WIDTH = 40, 16
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "two", "words", "and", "more")
DIMS = ("batch", "length")


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    square = {name: rng.standard_normal((WIDTH, WIDTH)) / 4 for name in ("wq", "wk", "wv", "wo")}
    table = {"table": rng.standard_normal((VOCABULARY, WIDTH))}
    made = table | square | {"gamma": np.ones(WIDTH), "beta": np.zeros(WIDTH), "scale": np.array(0.25), "low": np.array(-1e9)}
    return {name: array.astype(np.float32) for name, array in made.items()} | {"axes": np.array([1], np.int64)}


def nodes() -> list[onnx.NodeProto]:
    """Embedding, masked softmax attention, residual, LayerNormalization."""
    rows = [
        ("Gather", "table input_ids", "x"),
        ("MatMul", "x wq", "q"),
        ("MatMul", "x wk", "k"),
        ("MatMul", "x wv", "v"),
        ("Transpose", "k", "kt", {"perm": [0, 2, 1]}),
        ("MatMul", "q kt", "raw"),
        ("Mul", "raw scale", "scores"),
        ("Cast", "attention_mask", "mask", {"to": TensorProto.FLOAT}),
        ("Sub", "one mask", "masked"),
        ("Mul", "masked low", "bias"),
        ("Unsqueeze", "bias axes", "bias3"),
        ("Add", "scores bias3", "biased"),
        ("Softmax", "biased", "p", {"axis": -1}),
        ("MatMul", "p v", "context"),
        ("MatMul", "context wo", "mixed"),
        ("Add", "x mixed", "sum"),
        ("LayerNormalization", "sum gamma beta", "last_hidden_state", {"axis": -1}),
    ]
    return [oh.make_node(op, i.split(), [o], name=f"n_{o}", **dict(*extra)) for op, i, o, *extra in rows]


def encoder(path: Path, *, changed: float = 0.0, tokenizer: bool = False, external: bool = False) -> Path:
    """Write the encoder; `changed` is added to one weight. With `tokenizer`, a tokenizer.json lies beside it."""
    values = weights() | {"one": np.array(1, np.float32)}
    values["wo"][3, 5] += changed
    inputs = [oh.make_tensor_value_info(name, TensorProto.INT64, DIMS) for name in ("input_ids", "attention_mask")]
    output = oh.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, (*DIMS, WIDTH))
    graph = oh.make_graph(nodes(), "tiny", inputs, [output], [numpy_helper.from_array(a, n) for n, a in values.items()])
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    kind = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 128} if external else {}
    onnx.save(model, path, **kind)
    if tokenizer:
        write_tokenizer(path.parent)
    return path


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.save(str(folder / "tokenizer.json"))


def feeds(batch: int = 2, length: int = 5) -> dict[str, np.ndarray]:
    ids = np.arange(batch * length, dtype=np.int64).reshape(batch, length) % VOCABULARY
    return {"input_ids": ids, "attention_mask": np.ones((batch, length), np.int64)}
