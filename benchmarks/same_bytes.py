"""The same build in other surroundings, for the benchmark and for the tests: which files of the artifact differ, and where."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bertc.core import hash_file

PAGES = ("report.json", "report.html")  # the times of the stages are there, and nowhere else


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What a build may not depend on."""

    name: str
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    umask: int = 0o022
    folder: str = "."  # below the place of the build


def turkish(folder: Path) -> dict[str, str]:
    """tr_TR.UTF-8, in which `i` is no lower case of `I`; made in `folder` where the sources of locales are there."""
    made = folder / "tr_TR.UTF-8"
    if not made.exists() and shutil.which("localedef"):
        subprocess.run(["localedef", "-i", "tr_TR", "-f", "UTF-8", str(made)], capture_output=True, check=False)
    if not made.exists():
        return {"LC_ALL": "C"}
    return {"LOCPATH": str(folder), "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"}


def all_surroundings(folder: Path) -> tuple[Surroundings, ...]:
    """Each by itself, and at last all together; threads are those of the libraries that sum."""
    turkey = turkish(folder)
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    alone = (
        Surroundings("PYTHONHASHSEED=7", {"PYTHONHASHSEED": "7"}),
        Surroundings("OMP_NUM_THREADS=1", threads),
        Surroundings(f"LC_ALL={turkey['LC_ALL']}", turkey),
        Surroundings("TZ=Pacific/Kiritimati", {"TZ": "Pacific/Kiritimati"}),
        Surroundings("another working directory", folder="other"),
        Surroundings("umask 077", umask=0o077),
    )
    every = {key: value for each in alone for key, value in each.environment.items()}
    return (*alone, Surroundings("all of them", every, 0o077, "other"))


def build(words: Sequence[str], out: Path, around: Surroundings, place: Path) -> Path:
    """`bertc build WORDS -o out` in a process of its own; RuntimeError where it fails."""
    working = place / around.folder
    working.mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join(os.path.abspath(path or ".") for path in sys.path)
    environment = {**os.environ, "PYTHONPATH": paths, **around.environment}
    command = [sys.executable, "-m", "bertc", "build", *words, "-o", str(out)]
    changed = functools.partial(os.umask, around.umask)
    done = subprocess.run(command, env=environment, cwd=working, preexec_fn=changed, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{around.name}: {done.stderr}")
    return out


def differences(first: Path, second: Path) -> list[str]:
    """The files below two builds that are not the same, byte by byte; of manifests and reports, the keys."""
    names = {path.relative_to(root).as_posix() for root in (first, second) for path in root.rglob("*") if path.is_file()}
    found = []
    for name in sorted(names):
        one, other = first / name, second / name
        if not (one.is_file() and other.is_file()):
            found.append(f"{name}: in one of them alone")
        elif one.name in ("manifest.json", "report.json"):
            read = [_untimed(json.loads(path.read_text("utf-8"))) for path in (one, other)]
            found += [f"{name}: {key}" for key in _keys(*read)]
        elif one.name not in PAGES and hash_file(one) != hash_file(other):
            found.append(name)
    return found


def _untimed(document: dict[str, Any]) -> dict[str, Any]:
    """A manifest without the hashes and sizes of the pages, a report without its times."""
    kept = {key: value for key, value in document.items() if key != "stages"}
    if "summary" in kept:
        kept["summary"] = {key: value for key, value in kept["summary"].items() if key != "seconds"}
    if "files" in kept:
        kept["files"] = {name: entry for name, entry in kept["files"].items() if name not in PAGES}
    return kept


def _keys(one: Any, other: Any, path: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        names = sorted(one.keys() | other.keys())
        return [key for name in names for key in _keys(one.get(name), other.get(name), f"{path}.{name}")]
    return [] if one == other else [path.removeprefix(".")]
