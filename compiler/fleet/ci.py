"""The jobs of a CI pipeline: one an entry, on a runner that can build it. Each builds and verifies exactly its entry.

Names of entries and labels hold nothing that a shell, YAML or an expression of a CI service reads (`config.NAME`, `LABEL`).
Paths may hold more: they are quoted where a shell reads them, and refused where a CI service puts values in place of `$NAME`.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

from ..core import RecipeError
from .config import Entry, Fleet

ANY_GITHUB = ("ubuntu-latest",)
UPLOADED = re.compile(r"[\w./@+=,:~ -]+")  # GitLab reads `artifacts: paths` as a pattern, with $NAME in it


def jobs(fleet: Fleet, kind: str) -> dict[str, Any]:
    """GitHub: a matrix for `fromJSON`; GitLab: a whole child pipeline (its YAML may be JSON)."""
    return _github(fleet) if kind == "github" else _gitlab(fleet)


def _github(fleet: Fleet) -> dict[str, Any]:
    return {"include": [{**_facts(entry), "runs-on": list(_labels(fleet, entry, ANY_GITHUB))} for entry in fleet.entries]}


def _gitlab(fleet: Fleet) -> dict[str, Any]:
    """Jobs without tags where no labels are given for machines without a GPU: any runner takes them."""
    found: dict[str, Any] = {}
    file, out = _word(fleet.path), _uploaded(fleet)
    for entry in fleet.entries:
        tags = _labels(fleet, entry, ())
        commands = [f"bertc fleet {verb} {file} --entry {shlex.quote(entry.name)}" for verb in ("build", "verify")]
        commands[0] += " --locked" if fleet.lock.exists() else ""
        found[entry.name.replace("/", " ")] = {
            "script": commands,
            "artifacts": {"paths": [f"{out}/{entry.name}"]},
            **({"tags": list(tags)} if tags else {}),
        }
    return found


def _word(path: Path) -> str:
    """A path as one word of a shell line, and no option. RecipeError for one that GitLab itself would read something in."""
    text = path.as_posix()
    if not text.isprintable() or "$" in text:
        raise RecipeError(f"--ci: the fleet file is {text!r}; in a pipeline its path is printable and has no $: rename it")
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def _uploaded(fleet: Fleet) -> str:
    """The folder of artifacts as the pipeline sees it: from where the fleet file's own path begins."""
    inside = fleet.path.parent / os.path.relpath(fleet.out, fleet.path.resolve().parent)
    out = Path(os.path.normpath(inside)).as_posix()
    if not UPLOADED.fullmatch(out):
        raise RecipeError(
            f"--ci gitlab: out is {out!r}, which GitLab reads as a pattern; use letters, digits, spaces and . _ / @ + = , : ~ -"
        )
    return out


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
