"""The types of a target: availability, build request, what was built, int8 attention kernels."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..core import Profile, hash_file
from ..graph import Graph

if TYPE_CHECKING:
    from ..runtime import Runner


WEIGHTS = "graph.onnx.data"  # as graph.save_graph names it; model.onnx is the same graph, and reads the same file


@dataclasses.dataclass(frozen=True)
class Availability:
    """What a target can do on this machine; `reason` says why not, and what to install, where it cannot."""

    build: bool
    run: bool
    reason: str = ""
    version: str = ""
    install: str = ""


@dataclasses.dataclass(frozen=True)
class BuildRequest:
    """What a target gets: the lowered, typed graph and the file it was written to, and where the engine goes.

    `timing_cache` is a file that a compiler which times its kernels may read and add to.
    """

    graph: Graph
    graph_path: Path
    directory: Path
    precision: str
    sms: tuple[str, ...]
    profiles: tuple[Profile, ...]
    timing_cache: Path | None = None


@dataclasses.dataclass(frozen=True)
class Built:
    """What a target built: file names relative to the artifact, with their sha256, and facts for the manifest.

    `seconds` is what the compiler itself took; it stands apart because no fact may depend on the time of a build.
    """

    files: Mapping[str, str]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Int8Attention:
    """What a compiler has an int8 kernel of attention for; any other takes the products apart (5 kernels a layer more).

    `longest`: queries and keys, in every profile. `sizes` of a head.
    """

    longest: int
    sizes: tuple[int, ...]


class Target(Protocol):
    """The shape of a target module."""

    FUSES: bool  # whether lower() wants the fused graph, or the source's own
    SMS: tuple[str, ...]  # the SMs it builds for, () when it takes none
    DEFAULT_SMS: tuple[str, ...]
    INT8_BASE: str  # the precision of what is not int8 in an int8 build
    INT8_ATTENTION: Int8Attention | None  # None where its compiler has no int8 kernel for attention

    def available(self) -> Availability: ...
    def lower(self, graph: Graph, sms: tuple[str, ...] = (), *, quantised: bool = False) -> Graph: ...
    def build(self, request: BuildRequest) -> Built: ...
    def load(self, directory: Path, manifest: Mapping[str, Any]) -> Runner: ...


def place_graph(request: BuildRequest, name: str) -> str:
    """The typed graph under the name that a deployment looks for: a hard link, or a copy where links fail. Returns its sha256."""
    model = request.directory / name
    try:
        os.link(request.graph_path, model)
    except OSError:
        model.write_bytes(request.graph_path.read_bytes())
    return hash_file(model)


def engine_bytes(directory: Path, manifest: Mapping[str, Any], name: str) -> bytes:
    """The engine's bytes, of which the hash was checked: what is loaded is what was hashed, whatever is written there meanwhile.

    Raises ArtifactError as `engine_file`, and for other bytes than the manifest's.
    """
    from ..artifact import read_listed

    return read_listed(directory, manifest, name) if "files" in manifest else (directory / name).read_bytes()


def engine_file(directory: Path, manifest: Mapping[str, Any], name: str) -> Path:
    """The engine's file in an artifact, which its manifest must list: what was not hashed is not loaded.

    A build verifies before its manifest has hashes ("files"). Raises ArtifactError.
    """
    from ..artifact import listed_file

    return listed_file(directory, manifest, name) if "files" in manifest else directory / name
