"""What a source is: options, the opened graph, the truth about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..core import Dim, Feeds, Outputs
    from ..graph import Graph

IDS = ("int64", "int32")

FORMS = "a Hugging Face directory, a hub id (org/name), package.module:function, an .onnx file or an artifact directory"

KINDS = {"factory": "a Python factory", "onnx": "an .onnx file", "artifact": "an artifact", "huggingface": "a checkpoint"}

TASKS = (
    "features",
    "sentence-embedding",
    "token-embedding",
    "sequence-classification",
    "token-classification",
    "question-answering",
    "masked-lm",
    "audio-features",
    "audio-classification",
    "audio-frame-classification",
    "ctc",
)


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """How to open a source. `ids` is the integer type at the graph's boundary: int64, or int32 for TensorRT.

    `adapter` is the folder of a PEFT adapter to merge into the weights.
    """

    task: str | None = None
    revision: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    ids: str = "int64"
    opset: int = 20
    adapter: str | None = None


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A folder with adapter_config.json and its weights, checked (adapter.py)."""

    folder: Path
    config: Mapping[str, Any]
    weights: Path

    @property
    def kind(self) -> str:
        return str(self.config["peft_type"])

    @property
    def base(self) -> str:
        return str(self.config.get("base_model_name_or_path") or "")

    def files(self) -> tuple[Path, Path]:
        return self.folder / "adapter_config.json", self.weights


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened source.

    `run` is the truth: PyTorch for a checkpoint or a factory, ONNX Runtime without optimisations for an .onnx file, None for an
    artifact: there the file `goldens` is the truth, and `reference`, `kind` and `options` are those of its own source.
    `assets` are tokenizer or preprocessor files to copy.
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
    options: SourceOptions = dataclasses.field(default_factory=SourceOptions)
    goldens: Path | None = None


@dataclasses.dataclass(frozen=True)
class Reference:
    """The truth about a source without its graph: a hash of what decides its numbers, and the computation."""

    sha256: str
    run: Callable[[Feeds], Outputs]


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a reference leads: the kind of source, its path (none for a factory) and the commit of a hub model."""

    kind: str
    path: Path
    revision: str | None = None
