"""What a worker does once for each artifact, before others load it: open it, write what it shares, weigh it, and hold the shared
form against an ordinary session, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from .. import targets
from ..artifact import GOLDENS, MANIFEST, Artifact, Stamps, goldens, open_artifact
from ..core import ArtifactError, BuildFailed, Feeds, Missing, Outputs, hash_file, read_json
from . import memory

if TYPE_CHECKING:
    from ..runtime import Runner

FEW = 256  # tokens of a sample that is compared: a start should not take long
ROUNDED = 2**20  # what a session holds by itself is weighed in whole MiB: every start weighs it alike


@dataclasses.dataclass(frozen=True)
class Prepared:
    """How workers load a model. `saved`: the graph in the store, '' for an ordinary load, and `why` so.

    `digest` of the manifest: what is loaded later is what was opened now. `shape`: equal for graphs that take the same time.
    """

    path: str
    digest: str
    profiles: Sequence[Any]
    saved: str = ""
    why: str = ""
    shape: str = ""
    private: int = 0
    weights: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def need(self) -> memory.Need:
        return memory.Need(self.weights, self.private)


def prepare(name: str, path: Path, folder: Path | None, seen: Stamps | None = None) -> Prepared:
    """Open an artifact and weigh it. With a `folder`, what it can share goes to the store there. BertcError as load_runner.

    `seen`: stamps of the files that the server has hashed, which are not hashed again.
    """
    found = open_artifact(path, seen)
    before = memory.anonymous()
    _check_runnable(found)
    if folder is None or not hasattr(targets.get(found.target), "save_mapped"):
        why = "" if folder is None else f"target {found.target} has no weights that several workers can map"
        return _ordinary(found, targets.get(found.target).load(path, found.manifest), before, why)
    with tempfile.TemporaryDirectory(dir=folder, prefix="saving-") as half:
        return _shared(name, found, folder, Path(half), before)


def _shared(name: str, found: Artifact, folder: Path, half: Path, before: int) -> Prepared:
    target: Any = targets.get(found.target)
    store, feeds = memory.Store(folder), _feeds(found)
    try:
        ordinary = target.save_mapped(found.path, found.manifest, half / "model.onnx")
        weights, shape = store.take(name, half / "model.onnx")
    except (ValueError, KeyError, OSError, BuildFailed) as error:  # BuildFailed: a full disk too
        return _ordinary(found, target.load(found.path, found.manifest), before, f"it cannot be saved: {error}")
    if not feeds:
        return _ordinary(found, ordinary, before, "it has no goldens to hold a shared form against")
    wanted = [ordinary.run(each) for each in feeds]
    private = memory.anonymous() - before
    del ordinary
    memory.release()
    before = memory.anonymous()
    saved = store.graph(name)
    saved.with_suffix(".json").write_text(json.dumps(found.manifest), "utf-8")
    mapped = target.load_mapped(saved, found.manifest)
    if not _equal(wanted, [mapped.run(each) for each in feeds]):
        why = "its saved form does not give the same bits as its file"
        return dataclasses.replace(_described(found, mapped), why=why, private=max(private, _on_disk(found)))
    memory.release()
    grown = max(1, -(-(memory.anonymous() - before) // ROUNDED)) * ROUNDED
    return dataclasses.replace(_described(found, mapped), saved=str(saved), shape=shape, private=grown, weights=weights)


def _check_runnable(found: Artifact) -> None:
    ready = targets.get(found.target).available()
    if not ready.run:
        raise Missing(f"the engine of {found.path} (target {found.target}) cannot run here: {ready.reason}. {ready.install}")


def _ordinary(found: Artifact, runner: Runner, before: int, why: str) -> Prepared:
    for feeds in _feeds(found):
        runner.run(feeds)
    grown = memory.anonymous() - before
    return dataclasses.replace(_described(found, runner), why=why, private=max(grown, _on_disk(found)))


def _described(found: Artifact, runner: Runner) -> Prepared:
    limits = [{name: dataclasses.asdict(r) for name, r in each.items()} for each in runner.profiles]
    return Prepared(str(found.path), hash_file(found.path / MANIFEST), limits)


def _feeds(found: Artifact) -> list[Feeds]:
    """Goldens of each shape that takes no time, the smallest first."""
    if GOLDENS not in found.manifest["files"]:
        return []
    samples, _ = goldens.load_goldens(found.goldens)
    shapes = {tuple(array.shape for array in sample.feeds.values()): sample.feeds for sample in samples}
    ordered = sorted(shapes.values(), key=_values)
    return [feeds for feeds in ordered if _values(feeds) <= FEW] or ordered[:1]


def _values(feeds: Feeds) -> int:
    return max(array.size for array in feeds.values())


def _equal(wanted: Sequence[Outputs], got: Sequence[Outputs]) -> bool:
    return all(
        array.shape == other[name].shape and array.tobytes() == other[name].tobytes()
        for one, other in zip(wanted, got, strict=True)
        for name, array in one.items()
    )


def _on_disk(found: Artifact) -> int:
    """The bytes of what is loaded, for a lower bound: the graph is in every artifact a second time, and counts once."""
    sizes = {entry["sha256"]: int(entry["bytes"]) for name, entry in found.manifest["files"].items() if "/" not in name}
    return max(sizes.values(), default=0)


class SavedTarget(TypedDict):
    name: str


class Saved(TypedDict):
    """The manifest beside a model that the server saved to be mapped: of an artifact that was checked then."""

    target: SavedTarget


def load(facts: Mapping[str, Any]) -> tuple[Runner, float]:
    """(the runner of a prepared model, the seconds that it took). ArtifactError where the artifact is another one by now."""
    start = time.perf_counter()
    path = Path(facts["path"])
    if facts.get("saved"):
        saved = Path(facts["saved"])
        manifest = read_json(saved.with_suffix(".json"), Saved, error=ArtifactError)
        target: Any = targets.get(str(manifest["target"]["name"]))
        return target.load_mapped(saved, manifest), time.perf_counter() - start
    found = open_artifact(path, facts.get("seen"))
    _check_runnable(found)
    runner = targets.get(found.target).load(path, found.manifest)
    runner.index_bounds, runner.masks = found.index_bounds, found.masks
    if hash_file(path / MANIFEST) != facts["digest"]:
        raise ArtifactError(f"{path} was replaced after the server had loaded it; put it back, or serve with --reload")
    return runner, time.perf_counter() - start
