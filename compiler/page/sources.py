"""What a page is made from: an artifact, a folder of them, a fleet's status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import artifact, report
from ..errors import ArtifactError, InputError

NOT_FACTS = ("format", "files")  # of a manifest: the hashes, which no page shows


def artifact_document(path: Path) -> dict[str, Any]:
    """The report of an artifact, hashes checked. What report.json of an older bertc lacks is taken from its manifest."""
    found = artifact.open_artifact(path)
    facts = {key: value for key, value in found.manifest.items() if key not in NOT_FACTS}
    merged = facts | _json(path / artifact.REPORT)
    sizes = {name: entry["bytes"] for name, entry in found.manifest["files"].items() if not name.startswith("report.")}
    older = {"size": {"files": sizes, "total": report.size_of(path)}, "summary": report.summary(merged)}
    return older | merged


def with_verdict(document: Mapping[str, Any], path: Path, verdicts: Path) -> dict[str, Any]:
    """The report with the verification that `bertc verify --json` printed into a file, in place of that of the build."""
    found = _json(verdicts)
    listed = found.get("artifacts") if isinstance(found, Mapping) else None
    if not isinstance(listed, list):
        raise InputError(f"{verdicts} is not what `bertc verify --json` prints: it has no list of artifacts")
    wanted = [each for each in listed if Path(str(each.get("artifact"))).resolve() == path.resolve()]
    if not wanted:
        known = ", ".join(str(each.get("artifact")) for each in listed) or "none"
        raise InputError(f"{verdicts} says nothing of {path}; it verified: {known}")
    return {**document, "verification": wanted[0]}


def fleet(path: Path) -> tuple[dict[str, Any], list[dict[str, Any] | None]]:
    """(status, reports of its entries) of a folder of artifacts, or of a file with a fleet's entries; paths are relative to it.

    An artifact that is not there, or is damaged, is told in its entry's reason.
    """
    if path.is_dir():
        found = [artifact_document(each) for each in artifact.find(path)]
        return {"entries": [_entry(each) for each in found]}, list(found)
    status = _json(path)
    if not isinstance(status, Mapping) or not isinstance(status.get("entries"), list):
        raise InputError(f"{path} lists no entries; wanted an artifact, a folder of artifacts or a fleet.lock.json")
    entries, reports = [], []
    for entry in status["entries"]:
        if not isinstance(entry, Mapping):
            raise InputError(f"{path}: an entry is {entry!r}; each is an object with model, gpu, target, precision, state")
        read, why = _report_of(entry, path.parent)
        said = "; ".join(filter(None, (str(entry.get("reason") or ""), why)))
        entries.append({**entry, "reason": said})
        reports.append(read)
    return {**status, "entries": entries}, reports


def _report_of(entry: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any] | None, str]:
    """(the report of an entry, why there is none)."""
    if not entry.get("path"):
        return None, ""
    place = folder / str(entry["path"])
    if not place.exists():
        return None, f"no artifact at {entry['path']} here"
    try:
        return artifact_document(place), ""
    except ArtifactError as error:
        return None, str(error)


def _entry(document: Mapping[str, Any]) -> dict[str, Any]:
    """An entry for an artifact that no fleet's status lists."""
    target, source = document["target"], document["source"]
    sms = ", ".join(target["sms"])
    wanted = {"model": source["reference"], "sm": sms, "target": target["name"], "precision": document["precision"]["mode"]}
    return wanted | {"gpu": sms or target["name"], "state": "built"}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}") from error
