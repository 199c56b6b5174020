"""bertc inspect ARTIFACT|MODEL.onnx: what is in it, or what another has that it has not."""

from __future__ import annotations

from pathlib import Path

import click

from ..core import CheckFailed, InputError
from . import _shared as shared


@click.command()
@click.argument("path", type=click.Path(path_type=Path), metavar="ARTIFACT|MODEL.onnx")
@click.option("--kernels", is_flag=True, help="list every kernel of an engine")
@click.option("--diff", "other", type=click.Path(path_type=Path), metavar="OTHER", help="show only what differs in OTHER")
@click.option("--exit-code", is_flag=True, help="with --diff: exit 1 where something differs")
@shared.JSON
def inspect(path: Path, kernels: bool, other: Path | None, exit_code: bool, as_json: bool) -> None:
    """Show inputs and outputs, operators and their precision, an engine's kernels by layer, and the manifest.

    With --diff, what changed from one artifact to the other: source, recipe, passes, operators, precision, kernels, accuracy,
    size, tools. Two folders are compared artifact by artifact; times are left out.
    """
    if other is not None:
        _diff(path, other, exit_code, as_json)
        return
    if exit_code:
        raise InputError("--exit-code goes with --diff OTHER")
    from ..report import inspect as inspection

    found = inspection.inspect_path(path)
    inspection.show(found, shared.console(), kernels)
    if as_json:
        shared.print_json(found)


def _diff(a: Path, b: Path, exit_code: bool, as_json: bool) -> None:
    from ..report import diff as inspection_diff

    found = inspection_diff.compare(a, b)
    inspection_diff.show(a, b, found, shared.console())
    if as_json:
        differences = [each.to_json() for each in found]
        shared.print_json({"a": str(a), "b": str(b), "same": not found, "differences": differences})
    if found and exit_code:
        raise click.exceptions.Exit(CheckFailed.exit_code)  # not CheckFailed: the JSON document is printed already
