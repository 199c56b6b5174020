"""Pages written: report.json and report.html of an artifact, and the page of a folder or a fleet."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...artifact import manifest as artifact
from ...core import ArtifactError, InputError, Missing, files, what_is_wrong, write_hashed


def why_no_page() -> str:
    """Why this machine cannot write a page, '' where it can."""
    lacking = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    return f"{artifact.PAGE} was not written, {' and '.join(lacking)} missing: pip install 'bertc[report]'" if lacking else ""


def write_report(directory: Path, document: Mapping[str, Any]) -> dict[str, str]:
    """Write report.json into an artifact, and report.html where this machine can; {file name: sha256}."""
    hashes = {artifact.REPORT: files.write_json(directory / artifact.REPORT, document)}
    if not why_no_page():
        hashes[artifact.PAGE] = write_hashed(directory / artifact.PAGE, artifact_page(document).encode())
    return hashes


def write_document(
    folder: Path, name: str, document: Mapping[str, Any], render: Callable[[Mapping[str, Any]], str]
) -> tuple[str, ...]:  # fmt: skip
    """Write a document `NAME.json`, and beside it `NAME.html` where this machine can; returns why it could not."""
    files.write_json(folder / name, document)
    page = name.replace(".json", ".html")
    if why := why_no_page():
        return (why.replace(artifact.PAGE, page),)
    files.write_text(folder / page, render(document), "-o")
    return ()


def artifact_page(document: Mapping[str, Any]) -> str:
    """The page of one artifact, from the content of its report.json; that of an older bertc is joined with the manifest
    (`sources.artifact_document`).

    Raises Missing without the extra `report`.
    """
    _require()
    from . import single

    return single.render(document)


def fleet_page(status: Mapping[str, Any], documents: Sequence[Mapping[str, Any] | None]) -> str:
    """The page of a fleet: `status` is {"entries": [...]}, `documents` are their reports, None where there is none.

    Raises Missing without the extra `report`.
    """
    _require()
    from . import fleet

    return fleet.render(status, documents)


def save_page(
    path: Path,
    out: Path,
    *,
    force: bool = False,
    verdicts: Sequence[Path] = (),
    status: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the page of what lies at `path` (an artifact, a folder of them, a fleet's status) to `out`; returns what it shows.

    `verdicts` are files that `bertc verify --json` printed, with --layers or without; `status` is that of a fleet.toml
    (`fleet.status`). Raises InputError for an `out` that exists, or that lies inside an artifact, whose hashes it would break;
    Missing without the extra `report`.
    """
    _require()
    _check_out(out, force)
    from . import fleet, sources

    if not path.exists():
        raise InputError(f"there is no {path}; expected an artifact, a folder of artifacts, a fleet.toml or a fleet.lock.json")
    single = artifact.find_artifacts(path) == (path,) and path.is_dir()
    if verdicts and not single:
        raise InputError(f"--verdict goes with one artifact; {path} is not one")
    if single:
        document = sources.artifact_document(path)
        for file in verdicts:
            document = sources.with_verdict(document, path, file)
        with _as_written(path / artifact.REPORT):
            html = artifact_page(document)
    else:
        status, reports = sources.fleet_documents(path, status)
        with _as_written(path):
            document, html = fleet.fleet_document(status, reports), fleet_page(status, reports)
    files.write_text(out, html, "-o")
    return document


@contextlib.contextmanager
def _as_written(file: Path) -> Iterator[None]:
    """ArtifactError for a document without what a page shows, or with something else in its place: a page goes through hundreds
    of keys, and who changes one must know which file it was."""
    from jinja2 import UndefinedError

    try:
        yield
    except (UndefinedError, AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ArtifactError(f"{file} is not as bertc wrote it, no page can be made: {what_is_wrong(error)}") from error


def _check_out(out: Path, force: bool) -> None:
    for folder in files.resolved(out).parents:
        if (folder / artifact.MANIFEST).is_file():
            raise InputError(f"{out} lies inside the artifact {folder}, whose hashes it would break; choose another -o")
    files.check_writable(out, "-o")
    if out.exists() and not force:
        raise InputError(f"{out} exists; --force replaces it")


def _require() -> None:
    if why := why_no_page():
        raise Missing(why)
