"""bertc inspect ARTIFACT|MODEL.onnx: what is in it, or what another has that it has not."""

from __future__ import annotations

from pathlib import Path

import click

from ..core import CheckFailed, InputError
from . import _shared as shared
from ._command import Command
from ._output import console, print_json
from ._types import INPUT

SECTION = "Look"
EXAMPLES = (
    "bertc inspect out/engine --kernels",
    "bertc inspect out/minilm --diff out/bf16 --exit-code",
)


@click.command(cls=Command, short_help="Show an artifact or ONNX file, or compare two", examples=EXAMPLES)
@click.argument("path", type=INPUT, metavar="ARTIFACT|MODEL.onnx")
@click.option("--kernels", is_flag=True, help="List every kernel of an engine.")
@click.option("--diff", "other", type=INPUT, metavar="OTHER", help="Show only what differs in OTHER.")
@click.option("--exit-code", is_flag=True, help="With --diff: exit 1 where something differs.")
@shared.JSON
def inspect(path: Path, kernels: bool, other: Path | None, exit_code: bool, as_json: bool) -> None:
    """Show inputs and outputs, operators and their precision, an engine's kernels by layer, and the manifest.

    With --diff: what changed from one artifact to the other: source, recipe, passes, operators, precision, kernels, accuracy,
    size, tools. Two folders are compared artifact by artifact; times are left out.
    """
    if other is not None:
        if kernels:
            raise InputError("--kernels lists one artifact's kernels, --diff says which differ; give one of them")
        _show_differences(path, other, exit_code, as_json)
        return
    if exit_code:
        raise InputError("--exit-code needs --diff OTHER")
    from ..report import inspect as inspection

    found = inspection.inspect_path(path)
    inspection.show(found, console(), kernels)
    if as_json:
        print_json(found)


def _show_differences(a: Path, b: Path, exit_code: bool, as_json: bool) -> None:
    from ..report import diff as inspection_diff

    found = inspection_diff.compare(a, b)
    inspection_diff.show(a, b, found, console())
    if as_json:
        differences = [each.to_json() for each in found]
        print_json({"a": str(a), "b": str(b), "same": not found, "differences": differences})
    if found and exit_code:
        raise click.exceptions.Exit(CheckFailed.exit_code)  # not CheckFailed: the JSON document is printed already
