"""bertc report ARTIFACT|FOLDER|fleet.toml|fleet.lock.json: its report as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from . import _shared as shared
from ._command import Command
from ._output import print_json, print_result
from ._types import FILE, INPUT

SECTION = "Look"
EXAMPLES = (
    "bertc report out/both -o out/both.html",
    "bertc report fleet.toml -o fleet.html",
)


@click.command(cls=Command, short_help="Write the report of artifacts or a fleet as one page", examples=EXAMPLES)
@click.argument("path", type=INPUT, metavar="ARTIFACT|FOLDER|fleet.toml|fleet.lock.json")
@click.option("-o", "--out", required=True, type=FILE, metavar="FILE", help="The .html file to write.")
@shared.FORCE_FILE
@click.option(
    "--verdict",
    "verdicts",
    multiple=True,
    type=INPUT,
    metavar="FILE",
    help="Show this output of `bertc verify --json` (also of --layers); repeatable.",
)
@shared.JSON
def report(path: Path, out: Path, force: bool, verdicts: Sequence[Path], as_json: bool) -> None:
    """Write a page of one file: of an artifact, or of several with GPUs and precisions side by side.

    Every number on it is one of the artifact's report.json; --json prints the document that the page was made from.
    """
    from ..report import page

    status = _status_of(path) if path.suffix == ".toml" and path.is_file() else None
    document = page.save_page(path, out, force=force, verdicts=verdicts, status=status)
    print_result(f"{out}: {out.stat().st_size / 1024:.0f} KiB")
    if as_json:
        print_json(document)


def _status_of(fleet_toml: Path) -> dict[str, Any]:
    """The status of a fleet, as `bertc fleet status --json` prints it."""
    from ..fleet import Store, config, status

    fleet = config.read(fleet_toml)
    return status.status_document(fleet, Store(fleet.store.resolve()))
