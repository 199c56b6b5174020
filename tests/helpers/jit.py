"""Graphs as torch.jit's exporter writes them, below opset 18: ONNX text in tests/golden/jit, weights drawn when it is read.

Each is a model of transformers, two layers of width 16, by `torch.onnx.export(..., dynamo=False, opset_version=N)`; the `unnamed`
ones were given dynamic axes as a list, so that each input has dims of its own. In the text, weights have a shape and no numbers.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

FOLDER = Path(__file__).parent.parent / "golden" / "jit"
NAMES = sorted(path.stem for path in FOLDER.glob("*.txt"))
VOCABULARY = 120


@functools.cache
def model(name: str, seed: int = 0) -> onnx.ModelProto:
    """One of NAMES with its weights: normal, biases too, scales of a normalisation around 1."""
    return with_weights(onnx.parser.parse_model((FOLDER / f"{name}.txt").read_text("utf-8")), seed)


def with_weights(made: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Numbers for what a text gives shapes alone."""
    rng = np.random.default_rng(seed)
    for info in made.graph.value_info:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        array = rng.standard_normal(shape) / (4 if len(shape) > 1 else 10)
        gamma = "norm" in info.name.lower() and info.name.endswith("weight")
        made.graph.initializer.append(numpy_helper.from_array((array + gamma).astype(np.float32), info.name))
    del made.graph.value_info[:]
    return made


def saved(name: str, folder: Path) -> Path:
    """The model as a file."""
    path = folder / f"{name}.onnx"
    onnx.save(model(name), path)
    return path


def feeds(specs, kind: str, rows: int = 3, length: int = 11) -> dict[str, np.ndarray]:
    """ids, types and a mask that is full, padded right, left, or with holes."""
    rng = np.random.default_rng(length)
    mask = np.ones((rows, length), np.int64)
    for row in range(rows):
        places = {"right": slice(length - 1 - row, None), "left": slice(0, 1 + row), "holes": slice(1, None, 2 + row)}
        if kind in places:
            mask[row, places[kind]] = 0
    made = {
        "input_ids": np.where(mask > 0, rng.integers(5, VOCABULARY, mask.shape), 1),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, mask.shape),
    }
    return {spec.name: made[spec.name].astype(spec.dtype) for spec in specs}
