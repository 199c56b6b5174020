"""What a source is: options, the opened graph, the truth about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ..core import Dim, Feeds, Outputs
    from ..data import Sample, Text
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
class GivenSource:
    """A source that a user named to hold an artifact against, and what the user allows for opening it.

    `changed`: it need not be the one that the artifact was built from. `teacher`: it is what the artifact's source learned from.
    None of this ever comes out of an artifact: its manifest
    is data of whoever wrote it.
    """

    reference: str
    revision: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    adapter: str | None = None
    changed: bool = False
    teacher: bool = False

    def __str__(self) -> str:
        return self.reference


@dataclasses.dataclass(frozen=True)
class Given:
    """A source that computes in low precision, as it was given: `precision` is the type whose tolerance its float32 graph is held
    to, for a `reason`; `how` it is run. `rounded` is the same with every result rounded for real, where `run` may not: there an
    overflow shows."""

    run: Callable[[Feeds], Outputs]
    precision: str  # fp16, bf16 or int8
    reason: str
    how: str
    rounded: Callable[[Feeds], Outputs] | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened source.

    `run` is the truth: PyTorch for a checkpoint or a factory, ONNX Runtime without optimisations for an .onnx file, None for an
    artifact: there the file `goldens` is the truth, and `reference`, `kind` and `options` are what its manifest says of its own
    source: a record to be written down again, never opened. `samples` are feeds that came with it: a factory's examples. Of
    a source that computes in half precision the truth is its graph in float32, which is held against the source as `given`.
    `assets` are tokenizer or preprocessor files to copy. `inputs_truth` opens what they are held against, and raises Missing with
    the reason where that cannot be had.
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
    inputs_truth: Callable[[], InputTruth] | None = None
    inputs_record: Mapping[str, str] | None = None  # what the export compared, where the source is one
    samples: tuple[Sample, ...] = ()
    given: Given | None = None

    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {
            "reference": self.reference,
            "kind": self.kind,
            "sha256": self.sha256,
            "task": self.task,
            "revision": self.revision,
            "options": dataclasses.asdict(self.options),
            "notes": list(self.notes),
        }


@dataclasses.dataclass(frozen=True)
class InputTruth:
    """What the library that a source comes from makes of texts or of recordings; `name` says which, with its version.

    `ids` of texts under the prompt of a name (None: the default one) or `values` of waveforms, as arrays of a padded batch.
    `outputs` of one text; None where the library has no model to run. `singles`, `pairs`: what its model takes.
    """

    name: str
    ids: Callable[[Sequence[Text], str | None], dict[str, np.ndarray]] | None = None
    outputs: Callable[[Text, str | None], Outputs] | None = None
    values: Callable[[Sequence[np.ndarray]], dict[str, np.ndarray]] | None = None
    singles: bool = True
    pairs: bool = False
    pads: bool = True


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
