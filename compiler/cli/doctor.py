"""bertc doctor: what this machine has."""

from __future__ import annotations

import click

from . import _shared as shared


@click.command()
@shared.JSON
def doctor(as_json: bool) -> None:
    """Say what this machine has: targets available or the reason why not, versions, GPUs."""
    from ..report import doctor as examination

    found = examination.examine_machine()
    examination.show(found, shared.console())
    if as_json:
        shared.print_json(found)
