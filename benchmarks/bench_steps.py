"""Kernels of a decoder's step with its cache

One token more, by real architectures of two layers with random weights and biases (`tests/helpers/seq2seq.py`), the cache in and
out as two tensors a layer: kernels that TensorRT-RTX compiles for sm89 in fp16, of the exported graph and of the fused one.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import bertc

from .tools import table

STEPS = {"GPT-2": "gpt2_step", "BERT as decoder": "bert_step"}
FACTORIES = Path(__file__).parent.parent / "tests" / "helpers"


def run() -> str:
    sys.path.insert(0, str(FACTORIES))
    rows = [[name, *(str(kernels(f"seq2seq:{factory}", fuse)) for fuse in (False, True))] for name, factory in STEPS.items()]
    return table(["step", "eager export", "fused (wanted: no more)"], rows)


def kernels(source: str, fuse: bool) -> int:
    with tempfile.TemporaryDirectory() as folder:
        (made,) = bertc.build(source, Path(folder) / "out", targets=["tensorrt-rtx:sm89=fp16"], fuse=fuse)
    return int(made.manifest["engine"]["kernels"]["count"])
