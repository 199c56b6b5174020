"""bertc doctor: what this machine has."""

from __future__ import annotations

import click

from . import _shared as shared
from ._command import Command
from ._output import console, print_json

SECTION = "Look"
EXAMPLES = ("bertc doctor", "bertc doctor --json")


@click.command(cls=Command, short_help="Show what this machine has, and what is missing", examples=EXAMPLES)
@shared.JSON
def doctor(as_json: bool) -> None:
    """Show what this machine has: targets that build and run, or the reason why not, versions, GPUs."""
    from ..report import doctor as examination

    found = examination.examine_machine()
    examination.show(found, console())
    if as_json:
        print_json(found)
