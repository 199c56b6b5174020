"""bertc report ARTIFACT|FOLDER|fleet.toml|fleet.lock.json: its report as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from . import _shared as shared


@click.command()
@click.argument("path", type=click.Path(path_type=Path), metavar="ARTIFACT|FOLDER|fleet.toml|fleet.lock.json")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="the .html file to write")
@click.option("--force", is_flag=True, help="replace a file that is there")
@click.option(
    "--verdict",
    "verdicts",
    multiple=True,
    type=click.Path(path_type=Path),
    help="a file that `bertc verify --json` printed, with --layers or without, to show; repeatable",
)
@shared.JSON
def report(path: Path, out: Path, force: bool, verdicts: Sequence[Path], as_json: bool) -> None:
    """Write a page of one file: of an artifact, or of several with GPUs and precisions side by side.

    Every number on it is one of the artifact's report.json; --json prints the document that the page was made from.
    """
    from ..report import page

    status = _status_of(path) if path.suffix == ".toml" and path.is_file() else None
    document = page.save_page(path, out, force=force, verdicts=verdicts, status=status)
    shared.console().print(f"{out}: {out.stat().st_size / 1024:.0f} KiB", highlight=False, markup=False)
    if as_json:
        shared.print_json(document)


def _status_of(fleet_toml: Path) -> dict[str, Any]:
    """The status of a fleet, as `bertc fleet status --json` prints it."""
    from ..fleet import Store, config, status

    fleet = config.read(fleet_toml)
    return status.status_document(fleet, Store(fleet.store.resolve()))
