"""Targets: one file each, found by its name (`tensorrt-rtx` is `tensorrt_rtx.py`). A leading underscore hides a helper.

A target module has four functions and nothing to register:

    available() -> Availability                 what this machine can do with it, or the reason why not
    lower(graph, sms, quantised) -> Graph       from bertc's graph to the form its compiler takes best
    build(request) -> Built                     write the engine into request.directory
    load(directory, manifest) -> Runner         run an artifact

and may have a fifth, refusal(sms, precision) -> str | None: why it cannot build that, asked before any work is done.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from ..core.errors import RecipeError, nearest
from ..core.profiles import Profile
from ..graph.model import Graph

if TYPE_CHECKING:
    from ..runtime.runner import Runner


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
    """What a target made: file names relative to the artifact, with their sha256, and facts for the manifest.

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
    SMS: tuple[str, ...]  # the SMs it can be asked for, () when it takes none
    DEFAULT_SMS: tuple[str, ...]
    INT8_BASE: str  # the precision of what is not int8 in an int8 build
    INT8_ATTENTION: Int8Attention | None  # None where its compiler has no int8 kernel for attention

    def available(self) -> Availability: ...
    def lower(self, graph: Graph, sms: tuple[str, ...] = (), *, quantised: bool = False) -> Graph: ...
    def build(self, request: BuildRequest) -> Built: ...
    def load(self, directory: Path, manifest: Mapping[str, Any]) -> Runner: ...


def names() -> tuple[str, ...]:
    """All targets, by file name."""
    found = (m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return tuple(sorted(name.replace("_", "-") for name in found))


def get(name: str) -> Target:
    """The target module of that name; RecipeError lists the known ones."""
    if name not in names():
        raise RecipeError(f"unknown target {name!r}{nearest(name, names())}")
    return cast(Target, importlib.import_module(f".{name.replace('-', '_')}", __package__))


def lowerings(spec: TargetSpec, *, quantised: bool = False) -> Mapping[str, Any]:
    """The bodies that a target lowers fused operators to, for the proofs of the fusions; {} where it inlines them all."""
    target = get(spec.name)
    return target.lowerings(spec.sms, quantised=quantised) if hasattr(target, "lowerings") else {}


def refusal(spec: TargetSpec, precision: str) -> str | None:
    """Why a target cannot build a precision for these SMs; None where it can."""
    target = get(spec.name)
    return cast("str | None", target.refusal(spec.sms, precision)) if hasattr(target, "refusal") else None


@dataclasses.dataclass(frozen=True)
class TargetSpec:
    """`tensorrt-rtx:sm86,sm89=fp16`: a target, the SMs it is built for, and a precision of its own if it has one."""

    name: str
    sms: tuple[str, ...] = ()
    precision: str | None = None

    def __str__(self) -> str:
        text = self.name + (":" + ",".join(self.sms) if self.sms else "")
        return text + (f"={self.precision}" if self.precision else "")

    def directory_name(self, precision: str) -> str:
        """`tensorrt-rtx-sm89-fp16`; the SMs are left out where they are the target's default: `tensorrt-rtx-fp16`."""
        named = () if self.sms == get(self.name).DEFAULT_SMS else self.sms
        return "-".join((self.name, *named, precision))


def parse_spec(text: str) -> TargetSpec:
    """`NAME[:SM,SM...][=PRECISION]`; RecipeError for an unknown target or an SM it cannot build for."""
    body, _, precision = text.partition("=")
    name, _, listed = body.partition(":")
    target = get(name)
    sms = tuple(s.strip() for s in listed.split(",") if s.strip())
    for sm in sms:
        if not target.SMS:
            raise RecipeError(f"target {text!r}: {name} takes no SM")
        if sm not in target.SMS:
            raise RecipeError(f"target {text!r}: {name} cannot build for {sm!r}{nearest(sm, target.SMS)}")
    if len(set(sms)) != len(sms):
        raise RecipeError(f"target {text!r} names an SM twice")
    return TargetSpec(name, sms or target.DEFAULT_SMS, precision or None)
