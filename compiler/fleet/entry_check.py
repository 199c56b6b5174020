"""`bertc fleet verify`: each artifact in its place against its hashes, the lock, and its goldens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core import ArtifactError, BertcError, CheckFailed, gpu_models
from ..verification import verdict as verification
from . import content_digest as contents
from . import lock
from .config import Entry, Fleet


@dataclasses.dataclass(frozen=True)
class EntryCheck:
    """What became of one entry. exit_code 0: as it should be."""

    name: str
    said: str
    exit_code: int
    verdict: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def verify_fleet(fleet: Fleet, require_engine: bool = False) -> Iterator[EntryCheck]:
    """One check an entry. An entry that only another host can build may be absent: that is no failure."""
    locked = lock.read(fleet).get("entries", {})
    here = gpu_models.local_gpus()
    for entry in fleet.entries:
        if not (fleet.out / entry.name).exists() and entry.host and entry.host not in here:
            yield EntryCheck(entry.name, f"not here: needs a host with {entry.host}", 0)
            continue
        try:
            yield _checked(fleet.place_of(entry.name), entry, fleet, locked, require_engine)
        except BertcError as error:
            yield EntryCheck(entry.name, f"FAILED: {error}", error.exit_code)


def _checked(path: Path, entry: Entry, fleet: Fleet, locked: dict[str, Any], require_engine: bool) -> EntryCheck:
    if not path.exists():
        raise CheckFailed(f"not built: there is no {path}")
    try:
        (verdict,) = verification.verify(path, require_engine=require_engine, budget=None)
    except ArtifactError as error:  # a wrong artifact is what is looked for here: no bad input, but a failed check
        raise CheckFailed(f"{error}; bertc fleet build puts it in its place again") from error
    wanted = locked.get(entry.name, {}).get("digest")
    # TensorRT chooses kernels by how long they take: what another host built of the same inputs may differ.
    if wanted is not None and entry.host is None and contents.digest(path) != wanted:
        raise CheckFailed(f"{path} is undamaged but differs from {fleet.lock.name}; build again")
    said = verdict.summary() + ("" if wanted else "; not in the lock")
    if not verdict.passed:
        return EntryCheck(
            entry.name, f"{said}: {verdict.shortfall()}: {verdict.reasons()}", CheckFailed.exit_code, verdict.to_json()
        )
    return EntryCheck(entry.name, said, 0, verdict.to_json())
