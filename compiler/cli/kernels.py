"""bertc kernels: what the kernels of our own become on each SM. Needs triton and no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from . import _shared as shared
from ._command import Command
from ._output import console, print_json, progress
from ._types import FILE

SECTION = "Look"
EXAMPLES = ("bertc kernels --sm sm90", "bertc kernels packed_attention --sm sm86 --sm sm120 --json")


@click.command(cls=Command, short_help="Compile the kernels of our own, and show what they became", examples=EXAMPLES)
@click.argument("names", nargs=-1, metavar="[KERNEL]...")
@click.option("--sm", "sms", metavar="SM", multiple=True, help="Compile for this SM, as in sm90; repeatable. Without: for all.")
@click.option("--cache", type=FILE, metavar="DIR", help="Keep compiled kernels here. Without: ~/.cache/bertc/kernels.")
@shared.JSON
def kernels(names: Sequence[str], sms: Sequence[str], cache: Path | None, as_json: bool) -> None:
    """Compile the Triton kernels (all, or the KERNELs named) for each SM, without a GPU.

    Shows registers a thread, bytes of shared memory, bytes spilled, tensor core instructions (mma, wgmma, tcgen05), machine
    instructions, and the bytes that the kernel moves at a usual size against the fewest that any kernel could. A kernel that
    spills fails the check (exit 1).
    """
    from ..report import kernels as report

    log = progress()
    with log.stage("compile kernels") as advance:
        rows = report.compile_all(names, sms, cache or report.cache_folder(), advance)
    console().print(report.table(rows))
    for reason in report.refusals(rows):
        log.note(reason)
    if as_json:
        print_json(rows)
    shared.fail_check(report.spills(rows))
