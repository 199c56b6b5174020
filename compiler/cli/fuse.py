"""bertc fuse IN.onnx -o OUT.onnx: the fusions alone."""

from __future__ import annotations

from pathlib import Path

import click

from ..core import InputError, did_you_mean
from . import _shared as shared
from ._command import Command
from ._output import console, print_json, print_result, progress
from ._types import FILE, INPUT, Family

SECTION = "Build"
EXAMPLES = (
    "bertc fuse out/export/graph.onnx -o out/fused.onnx --expect bert",
    "bertc fuse model.onnx -o fused.onnx --explain attention",
)


@click.command(cls=Command, short_help="Fuse an ONNX file into operators proven equal", examples=EXAMPLES)
@click.argument("path", type=INPUT, metavar="IN.onnx")
@click.option("-o", "--out", required=True, type=FILE, metavar="FILE", help="The .onnx file to write.")
@shared.FORCE_FILE
@click.option("--rules", "rules_file", type=INPUT, metavar="FILE", help="A Python file with RULES of your own; it is run.")
@click.option(
    "--explain", is_flag=False, flag_value="", default=None, metavar="[RULE]", help="List candidates not fused, with the reason."
)
@click.option("--expect", type=Family(), help="Exit 1 unless all fusions of this family are found.")
@click.option("--prove/--no-prove", default=True, help="Prove each match by replaying it. Default: on.")
@shared.JSON
def fuse(
    path: Path,
    out: Path,
    force: bool,
    rules_file: Path | None,
    explain: str | None,
    expect: str | None,
    prove: bool,
    as_json: bool,
) -> None:
    """Fuse an ONNX file (opset 11+) into bertc operators, each proven equal. The file carries their bodies: it runs anywhere."""
    from ..fusions import engine as fusing
    from ..fusions import file
    from ..report import tables

    log = progress()
    known = (*fusing.ORDER, *([rules_file.stem] if rules_file else []))
    if explain and explain not in known:
        raise InputError(f"--explain {explain}: no such rule{did_you_mean(explain, known)}")
    with log.stage("fuse"):
        before, fused = file.fuse_file(path, out, force=force, prove=prove, rules_file=rules_file)
    for note in (*fused.notes, *(() if prove else ("no fusion was proven (--no-prove)",))):
        log.note(note)
    console().print(tables.fusions_table(fused.change))
    shown = [r for r in fused.change.refusals if explain in ("", r.rule)]
    for refusal in shown:
        print_result(f"  {refusal}")
    if explain is not None and not shown:
        print_result(f"  no candidate{f' of {explain}' if explain else ''} was refused")
    if as_json:
        print_json(fusing.fusions_to_json(fused, before))
    if expect:
        fusing.expect_fusions(before, fused.change, expect)
