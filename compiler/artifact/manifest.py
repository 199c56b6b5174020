"""The artifact: a directory with a manifest and hashes, written whole or not at all.

Everything is written into a hidden sibling folder and renamed at the end (staged.py), so a build that is killed leaves the old
artifact or none. Loading checks every hash first, and an engine is made of the very bytes that were hashed (`read_listed`): a
TensorRT plan is executable code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from ..core import (
    ArtifactError,
    Dim,
    Profile,
    TensorSpec,
    hash_file,
    what_is_wrong,
    write_json,
)
from ..core import profiles_from_json as profiles_from_json
from ..data import AUDIO_FILES
from ..graph import Graph, external_files, graph_of_bytes
from ..graph import load_graph as load_graph
from . import schema
from .staged import COMPRESSION as COMPRESSION
from .staged import GRAPH as GRAPH
from .staged import MANIFEST as MANIFEST
from .staged import SEARCH as SEARCH
from .staged import STUDENT as STUDENT
from .staged import already_written as already_written
from .staged import half_made
from .staged import staging as staging

FORMAT = 1
GOLDENS = "goldens.npz"
REPORT = "report.json"
PAGE = "report.html"  # made of report.json, and like it holds the times of the build
ASSET_FOLDERS = ("tokenizer", "preprocessor", "model")
REQUIRED = ("files", "target", "precision", "source", "engine", "inputs", "outputs", "dims", "profiles")


@dataclasses.dataclass(frozen=True)
class Artifact:
    """An artifact directory whose manifest was read and whose hashes were checked."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def target(self) -> str:
        return str(self.manifest["target"]["name"])

    @property
    def precision(self) -> str:
        return str(self.manifest["precision"]["mode"])

    @property
    def task(self) -> str:
        return str(self.manifest["source"]["task"])

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec.from_json(d) for d in self.manifest["inputs"])

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec.from_json(d) for d in self.manifest["outputs"])

    @property
    def dims(self) -> dict[str, Dim]:
        return {name: Dim.from_json(name, d) for name, d in self.manifest["dims"].items()}

    @property
    def profiles(self) -> tuple[Profile, ...]:
        return profiles_from_json(self.manifest["profiles"])

    @property
    def index_bounds(self) -> dict[str, int]:
        """The size of the table that each integer input indexes, where known."""
        return {name: int(rows) for name, rows in self.manifest.get("index_bounds", {}).items()}

    @property
    def masks(self) -> dict[str, str]:
        """{input: binary, inverted (1 where padding is) or additive}; {} in artifacts of before it was written."""
        return {str(name): str(kind) for name, kind in (self.manifest.get("masks") or {}).items()}

    @property
    def inputs_check(self) -> dict[str, str]:
        """What texts or recordings were held against when this was made; {} where nothing was written of it."""
        found = self.manifest.get("inputs_check") or {}
        return {name: str(found.get(name, "")) for name in ("against", "compared", "reason")} if found else {}

    @property
    def tokenizer(self) -> Path | None:
        folder = self.path / "tokenizer"
        return folder if folder.is_dir() else None

    @property
    def preprocessor(self) -> Path | None:
        folder = self.path / "preprocessor"
        return folder if folder.is_dir() else None

    @property
    def goldens(self) -> Path:
        """The file of feeds and the source's outputs for them. Raises ArtifactError where the manifest lists none."""
        return listed_file(self.path, self.manifest, GOLDENS)

    @property
    def assets(self) -> tuple[Path, ...]:
        """The files that travel with the model: tokenizer, feature extractor, config."""
        listed = [name for name in self.manifest["files"] if name.partition("/")[0] in ASSET_FOLDERS]
        return tuple(self.path / name for name in sorted(listed))

    def graph(self, mapped: bool = False) -> Graph:
        """The exact graph that was given to the target's compiler. Raises ArtifactError for other bytes than the manifest's.

        `mapped`: its weights stay in the file, which is opened again for them: for what looks at a graph and runs no model.
        """
        if mapped:
            return load_graph(self.path / GRAPH, mapped)
        beside = {
            name: read_listed(self.path, self.manifest, name) for name in (f"{GRAPH}.data",) if name in self.manifest["files"]
        }
        return graph_of_bytes(read_listed(self.path, self.manifest, GRAPH), self.path / GRAPH, beside)


SETTLED = 2 * 10**9  # nanoseconds
REPLACED = 3  # times that an artifact may be replaced by others while it is opened
DIFFERS = "{}: {} differs from the file that was built (sha256); copy or build it again"
Stamps = Mapping[str, Sequence[int]]  # what changes when a file is written or replaced, by the file's name in the artifact


def open_stamped(path: Path) -> tuple[Artifact, Stamps]:
    """(an artifact, opened and checked, the stamps of its files) by which another process hashes nothing again."""
    manifest = _read_manifest(path)
    now = time.time_ns()
    before = {MANIFEST: _stamp(path / MANIFEST)}  # all of them before anything is hashed
    before |= {name: _stamp(listed_file(path, manifest, name)) for name in manifest["files"]}
    # What was written a moment ago may be written again without another stamp: clocks of file systems are coarse.
    return open_artifact(path), {name: each for name, each in before.items() if each and now - max(each[3:]) > SETTLED}


def _stamp(file: Path) -> list[int]:
    """[] where there is no file."""
    try:
        found = file.stat()
    except OSError:
        return []
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def open_artifact(path: Path, seen: Stamps | None = None, later: Mapping[str, str] = MappingProxyType({})) -> Artifact:
    """Read and check an artifact. ArtifactError when it is none, of a newer format, or not what its hashes say.

    `seen`: the stamps of files that this user's own process has hashed; what still has its stamp is not hashed again. `later`:
    by target, the file that the caller is about to read by `read_listed`, which hashes the bytes that it gives.
    """
    for _ in range(REPLACED):
        before = _stamp(path / MANIFEST)
        try:
            return _opened(path, seen, later)
        except ArtifactError:
            if before == _stamp(path / MANIFEST):
                raise  # else a build has replaced the artifact meanwhile, and the new one is looked at
    return _opened(path, seen, later)


def _opened(path: Path, seen: Stamps | None, later: Mapping[str, str]) -> Artifact:
    manifest = _read_manifest(path)
    sums: dict[tuple[int, int], str] = {}
    read = later.get(str(manifest["target"]["name"]), "")
    if read in manifest["files"] and (unread := _stamp(listed_file(path, manifest, read))):
        sums[(unread[0], unread[1])] = manifest["files"][read]["sha256"]
    trusted = dict(seen) if seen and list(seen.get(MANIFEST, [])) == _stamp(path / MANIFEST) else {}
    for name, entry in manifest["files"].items():
        file = listed_file(path, manifest, name)
        if not file.is_file():
            raise ArtifactError(f"{path}: {name} is missing; copy the whole directory or build it again")
        known = name in trusted and list(trusted[name]) == _stamp(file)
        inode = (file.stat().st_dev, file.stat().st_ino)  # model.onnx is graph.onnx under a second name: read once
        if not known and (sums.get(inode) or sums.setdefault(inode, hash_file(file))) != entry["sha256"]:
            raise ArtifactError(DIFFERS.format(path, name))
    found = Artifact(path, manifest)
    _refuse_unlisted(found)
    _check_weights(found)
    return found


def read_listed(path: Path, manifest: Mapping[str, Any], name: str) -> bytes:
    """The bytes of a file of an artifact, which have the hash that the manifest says: nothing is opened after the check."""
    try:
        data = listed_file(path, manifest, name).read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: {name} is missing; copy the whole directory or build it again") from error
    if hashlib.sha256(data).hexdigest() != manifest["files"][name]["sha256"]:
        raise ArtifactError(DIFFERS.format(path, name))
    return data


def listed_file(path: Path, manifest: Mapping[str, Any], name: str) -> Path:
    """The file of that name in the artifact at `path`. ArtifactError where the manifest has no hash for it or it lies outside."""
    if name not in manifest["files"]:
        raise ArtifactError(f"{path}: the manifest lists no {name}; copy the whole directory or build it again")
    file = path / name
    # resolve() follows links: a link that leads out of the artifact reads what its sender does not have.
    if "\\" in name or "\0" in name or not Path(os.path.realpath(file)).is_relative_to(path.resolve()):
        raise ArtifactError(f"{path}: the manifest names {name!r}, outside the artifact")
    return file


def _check_weights(found: Artifact) -> None:
    """Weights beside a graph are read by ONNX Runtime from where the graph says: only from files that were hashed."""
    seen: set[str] = set()
    for name, entry in found.manifest["files"].items():
        if not name.endswith(".onnx") or entry["sha256"] in seen:
            continue
        seen.add(entry["sha256"])
        for location in external_files(found.path / name):
            file = listed_file(found.path, found.manifest, (PurePosixPath(name).parent / location).as_posix())
            if file.is_symlink():
                raise ArtifactError(f"{found.path}: {location}, the weights of {name}, is a link; copy the artifact with cp -rL")


def _refuse_unlisted(found: Artifact) -> None:
    """Tokenizers are read by libraries that open what they find in a folder: there must be nothing but what was hashed."""
    for folder in (found.path / name for name in ASSET_FOLDERS):
        for file in sorted(folder.rglob("*")) if folder.is_dir() else ():
            name = file.relative_to(found.path).as_posix()
            if not file.name.startswith(".") and (file.is_symlink() or not file.is_dir()) and name not in found.manifest["files"]:
                raise ArtifactError(
                    f"{found.path}: {name} is not in the manifest; remove it, or copy or build the artifact again"
                )


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if half_made(path):
        raise ArtifactError(f"{path} is no artifact: a build writes there, or was killed; name what it builds, or build again")
    if not file.is_file():
        if path.is_file():
            raise ArtifactError(f"{path} is a file; an artifact is the directory that bertc build or bertc export wrote")
        found = ", ".join(sorted(p.name for p in path.iterdir())[:5]) if path.is_dir() else "no such directory"
        raise ArtifactError(f"{path} is not a bertc artifact: no {MANIFEST} (found: {found or 'nothing'})")
    advice = "copy or build the artifact again"
    manifest = schema.read_manifest(file)
    version = manifest["format"]
    if version > FORMAT:
        raise ArtifactError(f"{file} has artifact format {version}, this bertc reads up to {FORMAT}: pip install -U bertc")
    missing = [key for key in REQUIRED if key not in manifest]
    if missing:
        raise ArtifactError(f"{file} is damaged: it lacks {', '.join(missing)}; {advice}")
    schema.check_manifest(manifest, file)
    if wrong := _wrong_part(Artifact(path, manifest)):
        raise ArtifactError(f"{file} is damaged: {wrong}; {advice}")
    return dict(manifest)


def _wrong_part(found: Artifact) -> str:
    """What of a manifest cannot be read, '' where all can: one clear error here, and no accident later."""
    for name, read in PARTS.items():
        try:
            read(found)  # what is read is thrown away: only that it can be read matters
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{name}: {what_is_wrong(error)}"
    return ""


def _read_files(found: Artifact) -> None:
    listed = {name: str(entry["sha256"]) for name, entry in found.manifest["files"].items()}
    if GRAPH not in listed:
        raise KeyError(GRAPH)


def _read_source(found: Artifact) -> None:
    made = found.manifest["source"]
    made["options"].items()
    for key in ("reference", "kind", "sha256", "task"):
        if not isinstance(made[key], str):
            raise ValueError(f"{key} is no text")


PARTS: Mapping[str, Callable[[Artifact], Any]] = {
    "files": _read_files,
    "engine": lambda found: found.manifest["engine"].items(),
    "source": _read_source,
    "target": lambda found: found.target,
    "precision": lambda found: found.precision,
    "inputs": lambda found: found.inputs,
    "outputs": lambda found: found.outputs,
    "dims": lambda found: found.dims,
    "profiles": lambda found: found.profiles,
    "index_bounds": lambda found: found.index_bounds,
    "inputs_check": lambda found: found.inputs_check,
}


def find_artifacts(path: Path) -> tuple[Path, ...]:
    """The artifact at `path`, or the artifacts right below it when it is the output of a build for several targets."""
    if (path / MANIFEST).is_file() or not path.is_dir():
        return (path,)
    parts = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
    # One that lost its manifest counts: opening it says so, and the others do not pass for the whole.
    below = tuple(sorted(p for p in parts if (p / MANIFEST).is_file() or (p / GRAPH).is_file()))
    return below or (path,)


def write_manifest(directory: Path, facts: Mapping[str, Any], hashes: Mapping[str, str]) -> None:
    """Write manifest.json last; files whose hash is not known yet are hashed here."""
    files = {}
    for file in sorted(p for p in directory.rglob("*") if p.is_file()):
        name = file.relative_to(directory).as_posix()
        files[name] = {"sha256": hashes.get(name) or hash_file(file), "bytes": file.stat().st_size}
    write_json(directory / MANIFEST, {"format": FORMAT, **facts, "files": files})


def copy_assets(assets: tuple[Path, ...], directory: Path) -> None:
    """Copy tokenizer files to tokenizer/, feature-extractor files to preprocessor/, config.json (class names) to model/.

    Contents are copied, never links; `source.assets` refused those that lead out of the source's folder.
    """
    for file in assets:
        named = {**dict.fromkeys(AUDIO_FILES, "preprocessor"), "config.json": "model"}
        folder = directory / named.get(file.name, "tokenizer")
        folder.mkdir(exist_ok=True)
        shutil.copyfile(file, folder / file.name)
