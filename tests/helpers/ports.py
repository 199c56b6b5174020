"""A tiny masked encoder in an .onnx file, its inputs and outputs typed and named as other tools do it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

WORDS, WIDTH, CLASSES = 40, 16, 3
TO_FLOAT = "mask_f = Cast<to = 1>({mask})"
SPREAD = "mask_4 = Unsqueeze(mask_f, axes)"
NO_SPREAD = "mask_4 = Identity(mask_f)"
ADDED = "bias = Identity(mask_4)"
TURNED = "bias_1 = Sub(one, mask_4)\n bias = Mul(bias_1, low)"


def encoder(
    path: Path,
    *,
    mask: str = "attention_mask",
    mask_type: str = "int64",
    rank: int = 2,
    additive: bool = False,
    extra_inputs: str = "",
    extra_outputs: str = "",
    extra_nodes: str = "",
) -> Path:
    """Write it: words, one attention of one head under the mask, a residual, `logits` of the first token."""
    shape = "batch, length" if rank == 2 else "batch, 1, length" if rank == 3 else "batch, 1, 1, length"
    lines = [
        TO_FLOAT.format(mask=mask) if mask_type != "float" else f"mask_f = Identity({mask})",
        SPREAD if rank == 2 else "mask_4 = Squeeze(mask_f, axes)" if rank == 4 else NO_SPREAD,
        ADDED if additive else TURNED,
        "x = Gather(words, input_ids)",
        "q = MatMul(x, wq)\n k = MatMul(x, wk)\n v = MatMul(x, wv)",
        "kt = Transpose<perm = [0, 2, 1]>(k)",
        "raw = MatMul(q, kt)\n scaled = Mul(raw, scale)\n scores = Add(scaled, bias)\n p = Softmax<axis = -1>(scores)",
        "context = MatMul(p, v)\n mixed = MatMul(context, wo)\n y = Add(x, mixed)",
        "first = Gather<axis = 1>(y, zero)\n logits = MatMul(first, classes)",
        extra_nodes,
    ]
    text = f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (int64[batch, length] input_ids, {mask_type}[{shape}] {mask}{extra_inputs})
          => (float[batch, {CLASSES}] logits{extra_outputs}) {{ {chr(10).join(lines)} }}
    """
    model = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights().items())
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {name: rng.standard_normal((WIDTH, WIDTH)) / 4 for name in ("wq", "wk", "wv", "wo")}
    made |= {"words": rng.standard_normal((WORDS, WIDTH)), "classes": rng.standard_normal((WIDTH, CLASSES))}
    made |= {"one": np.array(1.0), "low": np.array(-10000.0), "scale": np.array(0.25)}
    return {n: a.astype(np.float32) for n, a in made.items()} | {"axes": np.array([1]), "zero": np.array(0)}
