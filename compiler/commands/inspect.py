"""bertc inspect ARTIFACT|MODEL.onnx: what is in it."""

from __future__ import annotations

from pathlib import Path

import click

from . import _shared as shared


@click.command()
@click.argument("path", type=click.Path(path_type=Path), metavar="ARTIFACT|MODEL.onnx")
@click.option("--kernels", is_flag=True, help="list every kernel of an engine")
@shared.JSON
def inspect(path: Path, kernels: bool, as_json: bool) -> None:
    """Show inputs and outputs, operators and their precision, an engine's kernels by layer, and the manifest."""
    from .. import inspection

    found = inspection.examine(path)
    inspection.show(found, shared.console(), kernels)
    if as_json:
        shared.print_json(found)
