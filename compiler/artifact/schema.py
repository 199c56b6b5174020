"""What manifest.json and report.json must be, for whoever reads them: the keys that bertc reads, with their types and ranges.

Keys that are not here are let through: another version of the same format may write more. What an older one left out need not be
there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

from ..core import ArtifactError, read_json, require

MOST = 2**53  # what every reader of JSON holds exactly
Size = Annotated[int, Meta(ge=0, le=MOST)]
DimSize = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Ranges = Annotated[str, Meta(pattern="^[0-9]{1,10}:[0-9]{1,10}:[0-9]{1,10}$")]
Name = Annotated[str, Meta(max_length=4096)]
Counts = dict[str, Size]


class File(TypedDict):
    sha256: Sha256
    bytes: Size


class Source(TypedDict):
    reference: str
    kind: str
    sha256: str
    task: str
    options: dict[str, Any]
    revision: NotRequired[str | None]
    notes: NotRequired[list[str]]


class Target(TypedDict):
    name: Name
    sms: list[str]


class Island(TypedDict):
    node: str
    op: str
    reason: str


class Clamp(TypedDict):
    constant: str
    now: float | str


class Precision(TypedDict):
    mode: str
    islands: list[Island]
    clamps: NotRequired[list[Clamp]]


class Tensor(TypedDict):
    name: str
    dtype: str
    dims: list[DimSize | str]


class Dimension(TypedDict):
    min: DimSize
    max: DimSize | None
    multiple: NotRequired[Annotated[int, Meta(ge=1, le=2**31 - 1)]]
    rows: NotRequired[bool]


class Ops(TypedDict):
    opset: NotRequired[Size]
    ops: Counts
    initializer_bytes: NotRequired[Size]


class Applied(TypedDict):
    rule: str
    node: str


class Refusal(TypedDict):
    rule: str
    node: str
    op: str
    reason: str


class Passes(TypedDict):
    counts: Counts
    applied: NotRequired[list[Applied]]
    refusals: list[Refusal]


class KernelRow(TypedDict):
    name: str
    type: str
    dtype: str
    layer: str | Size | None
    onnx_nodes: list[str]
    profile: NotRequired[Any]


class Kernels(TypedDict):
    count: Size
    layers: list[Any]
    rest: Any
    rows: list[KernelRow]


class Session(TypedDict):
    graph_optimization_level: NotRequired[str]
    execution_mode: NotRequired[str]
    providers: NotRequired[list[Any]]


class Engine(TypedDict):
    kernels: NotRequired[Kernels]
    session: NotRequired[Session]
    builder_version: NotRequired[str]


class WithFormat(TypedDict):
    format: Annotated[int, Meta(ge=1, le=MOST)]


class Manifest(TypedDict):
    format: Annotated[int, Meta(ge=1, le=MOST)]
    files: dict[str, File]
    source: Source
    target: Target
    precision: Precision
    engine: Engine
    inputs: list[Tensor]
    outputs: list[Tensor]
    dims: dict[str, Dimension]
    profiles: list[dict[str, Ranges]]
    bertc: NotRequired[str]
    recipe: NotRequired[dict[str, Any]]
    passes: NotRequired[Passes | None]
    graph: NotRequired[Ops]
    index_bounds: NotRequired[Counts | None]
    masks: NotRequired[dict[str, str] | None]
    inputs_check: NotRequired[dict[str, Any] | None]
    budget: NotRequired[dict[str, float | None]]
    tools: NotRequired[dict[str, str]]
    seed: NotRequired[Size]
    int8: NotRequired[dict[str, Any] | None]


Measured = float | Literal["inf", "-inf", "nan"]  # JSON has no number for the three


class Output(TypedDict):
    max_abs: Measured
    cosine_min: Measured
    relative: Measured
    sqnr_db: NotRequired[Measured]


class Decision(TypedDict):
    name: str
    agreement: float | None


class Metric(TypedDict):
    name: str
    drop: float | None


class Closeness(TypedDict):
    outputs: Annotated[dict[str, Output], Meta(min_length=1)]
    decisions: list[Decision]
    metrics: list[Metric]


class Verification(TypedDict):
    engine: Closeness | None
    graph: Closeness | None
    engine_executed: bool
    verdict: str
    data: str


class Verdicts(TypedDict):
    """What bertc verify --json prints."""

    artifacts: list[dict[str, Any]]


class Report(TypedDict):
    verification: Verification | None
    export_check: NotRequired[dict[str, Any] | None]
    stages: NotRequired[dict[str, float]]
    notes: NotRequired[list[str]]
    summary: NotRequired[dict[str, Any]]
    graphs: NotRequired[dict[str, Ops | None]]


AGAIN = "copy or build the artifact again"


def read_manifest(file: Path) -> dict[str, Any]:
    """manifest.json, an object with a format: all that may be said of it before its format is known."""
    return dict(read_json(file, WithFormat, advice=AGAIN, error=ArtifactError))


def check_manifest(manifest: dict[str, Any], file: Path) -> None:
    """ArtifactError naming the key of a manifest that is not as bertc writes it."""
    require(manifest, Manifest, where=str(file), advice=AGAIN, error=ArtifactError)


def read_report(file: Path) -> dict[str, Any]:
    """report.json. ArtifactError naming the key that is not as bertc writes it."""
    report = dict(read_json(file, Report, advice=AGAIN, error=ArtifactError))
    check_verification(report["verification"], file)
    return report


def check_facts(facts: dict[str, Any], file: Path) -> None:
    """ArtifactError naming the key of facts that are not as in a manifest, whose hashes are not among them."""
    require({"format": 1, "files": {}, **facts}, Manifest, where=str(file), advice=AGAIN, error=ArtifactError)


def check_verification(found: Any, where: Path | str) -> None:
    """One of the engine and its graph was measured."""
    if found and not found["engine"] and not found["graph"]:
        raise ArtifactError(f"{where}: $.verification has neither engine nor graph, wants what was measured of one; {AGAIN}")
