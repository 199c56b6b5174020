"""What a page is made from: an artifact, a folder of them, a fleet's status."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...artifact import Verdicts, Verification, check_facts, check_verification, read_report
from ...artifact import manifest as artifact
from ...core import ArtifactError, InputError, read_json, require
from .. import document as report

NOT_FACTS = ("format", "files")  # of a manifest: the hashes, which no page shows


def artifact_document(path: Path) -> dict[str, Any]:
    """The report of an artifact, hashes checked. What report.json of an older bertc lacks is taken from its manifest."""
    found = artifact.open_artifact(path)
    facts = {key: value for key, value in found.manifest.items() if key not in NOT_FACTS}
    merged = facts | read_report(path / artifact.REPORT)
    check_facts({key: value for key, value in merged.items() if key not in NOT_FACTS}, path / artifact.REPORT)
    sizes = {name: entry["bytes"] for name, entry in found.manifest["files"].items() if not name.startswith("report.")}
    older = {"size": {"files": sizes, "total": report.directory_bytes(path)}, "summary": report.summary_counts(merged)}
    return older | merged


def with_verdict(document: Mapping[str, Any], path: Path, file: Path) -> dict[str, Any]:
    """The report with what `bertc verify --json` printed into a file: a verdict in place of that of the build, or the drift
    of `--layers` beside it. InputError for a file without this artifact."""
    listed = read_json(file, Verdicts, advice="write it again with bertc verify --json")["artifacts"]
    named = {Path(str(each.get("artifact") or each.get("path"))).resolve(): each for each in listed}
    verified = named.get(path.resolve())
    if verified is None:
        raise InputError(f"{file} has no verdict of {path}, only of: {', '.join(map(str, named)) or 'nothing'}")
    before = document["verification"]
    if "layers" not in verified:
        require(verified, Verification, where=f"{file}, {path.name}")
        check_verification(verified, file)
        return {**document, "verification": {**verified, **({"drift": before["drift"]} if before and "drift" in before else {})}}
    if before is None:
        raise InputError(f"{path} was built with --no-verify: give --verdict a `bertc verify --json` first, then {file}")
    return {**document, "verification": {**before, "drift": verified}}


def fleet_documents(path: Path, status: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], list[dict[str, Any] | None]]:
    """(status, reports of its entries) of a folder of artifacts, what `bertc fleet status --json` printed, a fleet.lock.json, or
    a fleet.toml with its `status`; paths are relative to that file.

    An artifact that is missing or damaged is named in its entry's reason.
    """
    if path.is_dir():
        found = [artifact_document(each) for each in artifact.find_artifacts(path)]
        return {"entries": [_entry(each) for each in found]}, list(found)
    told, status = status, read_json(path) if status is None else status
    root = Path(str(told["out"])) if told is not None else path.parent
    listed = status.get("entries") if isinstance(status, Mapping) else None
    if isinstance(listed, Mapping):  # a lock file: by name, each where `bertc fleet build` puts it
        listed = [{"name": name, "path": f"{status.get('out', 'out')}/{name}", **entry} for name, entry in listed.items()]
    if not isinstance(listed, list):
        raise InputError(
            f"{path} lists no entries; expected an artifact, a folder of artifacts, a fleet.toml or a fleet.lock.json"
        )
    entries, reports = [], []
    for entry in listed:
        if not isinstance(entry, Mapping):
            raise InputError(f"{path}: an entry is {entry!r}; each is an object with model, gpu, target, precision, state")
        read, why = _report_of(entry, path, root)
        entries.append({**entry, "reason": "; ".join(filter(None, (_text(entry, "reason"), why)))})
        reports.append(read)
    return {**status, "entries": entries}, reports


def _text(entry: Mapping[str, Any], name: str) -> str:
    """A field that one version writes as a string and another as a list, `reason` or `reasons`."""
    several = entry.get(f"{name}s") or ()
    return str(entry.get(name) or "; ".join(map(str, several)))


def _report_of(entry: Mapping[str, Any], file: Path, root: Path) -> tuple[dict[str, Any] | None, str]:
    """(the report of an entry, why there is none). A file that travels opens nothing outside its own folder."""
    if not entry.get("path"):
        return None, ""
    where = file.parent / str(entry["path"])
    try:
        inside = where.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # no path at all: a null character, a circle of links
        inside = False
    if not inside:
        why = f"it lies outside {root}, the folder of {file.name}"
        return None, f"{entry['path']} was not read: {why}; name the fleet.toml, or put {file.name} beside the artifacts"
    if not where.exists():
        return None, f"no artifact at {entry['path']} here"
    try:
        return artifact_document(where), ""
    except ArtifactError as error:
        return None, str(error)


def _entry(document: Mapping[str, Any]) -> dict[str, Any]:
    """An entry for an artifact that no fleet's status lists."""
    target, source = document["target"], document["source"]
    sms = ", ".join(target["sms"])
    entry = {"model": source["reference"], "sm": sms, "target": target["name"], "precision": document["precision"]["mode"]}
    return entry | {"gpu": sms or target["name"], "state": "built"}
