"""The jobs of a CI pipeline: one an entry, on a runner that can build it. Each builds and verifies exactly its entry."""

from __future__ import annotations

from typing import Any

from .config import Entry, Fleet

ANY_GITHUB = ("ubuntu-latest",)


def jobs(fleet: Fleet, kind: str) -> dict[str, Any]:
    """GitHub: a matrix for `fromJSON`; GitLab: a whole child pipeline (its YAML may be JSON)."""
    return _github(fleet) if kind == "github" else _gitlab(fleet)


def _github(fleet: Fleet) -> dict[str, Any]:
    return {"include": [{**_facts(entry), "runs-on": list(_labels(fleet, entry, ANY_GITHUB))} for entry in fleet.entries]}


def _gitlab(fleet: Fleet) -> dict[str, Any]:
    """Jobs without tags where no labels are given for machines without a GPU: any runner takes them."""
    found: dict[str, Any] = {}
    for entry in fleet.entries:
        tags = _labels(fleet, entry, ())
        commands = [f"bertc fleet {verb} {fleet.path.as_posix()} --entry {entry.name}" for verb in ("build", "verify")]
        commands[0] += " --locked" if fleet.lock.exists() else ""
        found[entry.name.replace("/", " ")] = {
            "script": commands,
            "artifacts": {"paths": [f"{fleet.out.name}/{entry.name}"]},
            **({"tags": list(tags)} if tags else {}),
        }
    return found


def _facts(entry: Entry) -> dict[str, Any]:
    return {
        "entry": entry.name,
        "model": entry.model,
        "target": entry.spec.name,
        "precision": entry.precision,
        "gpu": entry.host or "",
        "gpus": ",".join(entry.gpus),
        "artifact": entry.name.replace("/", "--"),
    }


def _labels(fleet: Fleet, entry: Entry, anywhere: tuple[str, ...]) -> tuple[str, ...]:
    if entry.host is None:
        return fleet.runners.get("any", anywhere)
    return fleet.runners.get(entry.host, ("self-hosted", "gpu", entry.host))
