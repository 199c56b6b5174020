"""Source: what a user points at, opened as one graph, with the computation that is the truth about it.

`open_source` resolves a reference in a fixed order: an existing path, then a Python factory, then a hub id.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from .graph import Graph
from .profiles import Dim
from .runner import Feeds, Outputs

TASKS = (
    "features",
    "sentence-embedding",
    "sequence-classification",
    "token-classification",
    "question-answering",
    "masked-lm",
    "audio-features",
    "ctc",
)


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """How to open a source. `ids` is the integer type at the graph's boundary: int64, or int32 for TensorRT."""

    task: str | None = None
    revision: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    ids: str = "int64"
    opset: int = 20


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened source.

    `run` is the truth: PyTorch for a checkpoint or a factory, ONNX Runtime without optimisations for an .onnx file,
    None for an artifact (its goldens are the truth). `assets` are tokenizer or preprocessor files to copy.
    """

    reference: str
    kind: str  # huggingface, factory, onnx or artifact
    sha256: str
    task: str
    graph: Graph
    dims: Mapping[str, Dim]
    run: Callable[[Feeds], Outputs] | None
    assets: tuple[Path, ...] = ()
    revision: str | None = None
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
