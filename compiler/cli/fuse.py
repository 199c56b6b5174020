"""bertc fuse IN.onnx -o OUT.onnx: the fusions alone."""

from __future__ import annotations

from pathlib import Path

import click

from . import _shared as shared


@click.command()
@click.argument("path", type=click.Path(path_type=Path), metavar="IN.onnx")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="the .onnx file to write")
@click.option("--force", is_flag=True, help="replace a file that is there")
@click.option("--rules", "rules_file", type=click.Path(path_type=Path), help="a Python file with RULES of your own; it is run")
@click.option(
    "--explain", is_flag=False, flag_value="", default=None, metavar="[RULE]", help="show near-misses and why they stopped"
)
@click.option("--expect", metavar="FAMILY[:LAYERS]", help="exit 1 unless all that this family promises was found")
@click.option("--prove/--no-prove", default=True, help="replay each match against what takes its place")
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
    """Fuse an ONNX file (opset 11 on) into bertc operators, each proven equal; it carries their bodies and runs anywhere."""
    from ..fusions import engine as fusing
    from ..fusions import file
    from ..report import tables

    log = shared.progress()
    with log.stage("fuse"):
        before, fused = file.fuse_file(path, out, force=force, prove=prove, rules_file=rules_file)
    for note in (*fused.notes, *(() if prove else ("nothing was proven (--no-prove)",))):
        log.note(note)
    shared.console().print(tables.fusions_table(fused.change))
    shown = fused.change.refusals if explain is not None else ()
    for refusal in (r for r in shown if explain in ("", r.rule)):
        log.say(f"  {refusal}")
    if as_json:
        shared.print_json(fusing.fusions_to_json(fused, before))
    if expect:
        fusing.expect_fusions(before, fused.change, expect)
